"""The pages of a training: report and model card, as HTML and Markdown, and `train.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common_ml_utils.hybrid_recommender import BlendWeights
from common_ml_utils.pages import Bullets, Facts, Note, Page, Plots, Section, Table, Text
from common_ml_utils.release_bundle import Manifest
from common_ml_utils.reports import measurement, write_report
from src.config import K
from src.evaluation import GENRE_POPULARITY, HYBRID, NDCG, POPULARITY, SAR, HoldoutFigures, Measures
from src.figures import bars_with_intervals, slice_bars
from src.hybrid import Trial
from src.measures import Interval

OWNER = "recommendation"
RECALL = f"recall_at_{K}"
PURPOSE = (
    "Which movies a viewer rates next. The score orders movies for one viewer; it is not a probability and"
    " can't be compared between viewers."
)
USES = (
    "Lists of movies for viewers with a history, in batch or one viewer at a time.",
    "Lists for new viewers (popular movies) and new movies (by genres and age, for a viewer's taste).",
)
LIMITS = (
    "A rating of any height counts as interest: what a viewer disliked is evidence too.",
    "Ratings are of volunteers, 1995 to 2016; many rated dozens of movies in one sitting, so order in time"
    " says little, and figures by time are far below those of random splits.",
    "A viewer's own future is held out, but others' later ratings are in training: the figures are those of"
    " a model trained today, asked about viewers who come back.",
    "New movies are told apart by ten genres and age only; within these they are ordered alike.",
    "No attribute of people is known, so fairness between groups of people can't be measured; viewers by"
    " history and movies by age and popularity are.",
)


@dataclass(frozen=True)
class TrainingFacts:
    """What is said of a trained model."""

    manifest: Manifest
    bundle_sha256: str
    contract_sha256: str
    figures: HoldoutFigures
    blend: BlendWeights
    trials: Sequence[Trial]
    rows: Mapping[str, int]
    parameters: Mapping[str, Any]

    @cached_property
    def plots(self) -> dict[str, bytes]:
        """Name -> PNG of every plot of the training."""
        known, cold = self.figures.known_viewers, self.figures.cold_start.measures
        return {
            "known_viewers": bars_with_intervals(
                "nDCG@10 on each viewer's last ratings", {name: each[NDCG] for name, each in known.items()}
            ),
            "new_movies": bars_with_intervals(
                "nDCG@10 on movies without a rating", {name: each[NDCG] for name, each in cold.items()}
            ),
            "viewers_by_history": slice_bars("nDCG@10 by history", self.figures.slices, NDCG),
            "movies_by_age_and_popularity": slice_bars("recall@10 by movie", self.figures.slices, RECALL),
        }

    def summary(self) -> str:
        """Return the verdict in a sentence or two."""
        known, cold = self.figures.known_viewers, self.figures.cold_start
        return (
            f"nDCG@10 {ranged(known[HYBRID][NDCG])} for known viewers, beside"
            f" {known[SAR][NDCG].value:.3f} of SAR and {known[POPULARITY][NDCG].value:.3f} of popularity;"
            f" for new movies {ranged(cold.measures[HYBRID][NDCG])}, beside"
            f" {cold.measures[GENRE_POPULARITY][NDCG].value:.3f} of the popularity of their genres."
        )


def ranged(interval: Interval) -> str:
    """Return a value with its interval, as people read it.

    >>> ranged(Interval(0.1234, 0.1, 0.15))
    '0.123 (0.100 to 0.150)'
    """
    return f"{interval.value:.3f} ({interval.lower:.3f} to {interval.upper:.3f})"


def card_files(facts: TrainingFacts) -> dict[str, bytes]:
    """Return the model card as files of the run: HTML and Markdown to read, JSON to compare by."""
    page = card_page(facts)
    return {
        "model_card/model_card.html": page.html().encode(),
        "model_card/model_card.md": page.markdown("../plots").encode(),
        "model_card/model_card.json": json.dumps(document(facts), indent=1, allow_nan=False).encode() + b"\n",
    }


def card_page(facts: TrainingFacts) -> Page:
    """Return the model card: what the model is for, what it can and can't do, and where it comes from."""
    return Page(
        title=f"Model card: {facts.manifest.model_name}",
        subtitle=f"Owner: {OWNER}. Bundle {facts.bundle_sha256[:12]}.",
        summary=[Note(_kind(facts.figures), [facts.summary()])],
        sections=[
            Section("Use", [Text(PURPOSE), Bullets(USES)]),
            *_figure_sections(facts),
            Section("Limits", [Bullets(LIMITS)]),
            Section("Provenance", [Facts(_provenance(facts))]),
        ],
    )


def training_page(facts: TrainingFacts, version: int, seconds: Mapping[str, float]) -> Page:
    """Return the report of a training run."""
    trials = [list(trial.as_row().values()) for trial in facts.trials]
    return Page(
        title=f"{facts.manifest.model_name} version {version}",
        subtitle="Training report: the challenger, measured once on what each viewer rated last.",
        summary=[Note(_kind(facts.figures), [facts.summary()])],
        sections=[
            *_figure_sections(facts),
            Section(
                "The mixture, chosen on validation",
                [Facts(asdict(facts.blend)), Table(list(facts.trials[0].as_row()), trials)],
            ),
            Section(
                "Training",
                [Facts(facts.rows), Facts(facts.parameters), Facts({**seconds}), Facts(_provenance(facts))],
            ),
        ],
    )


def write_training_report(
    folder: Path, facts: TrainingFacts, version: int, seconds: Mapping[str, float]
) -> None:
    """Write `train.json`, `train.html` and `model_card.html`."""
    known, cold = facts.figures.known_viewers, facts.figures.cold_start
    beside = {
        NDCG: ("SAR", known[SAR][NDCG].value),
        f"new_movie_{NDCG}": (GENRE_POPULARITY, cold.measures[GENRE_POPULARITY][NDCG].value),
    }
    results = [
        measurement(
            name,
            value,
            "bit" if name == "novelty" else "ratio",
            peer=beside[name][0] if name in beside else "",
            peer_value=beside[name][1] if name in beside else None,
        )
        for name, value in facts.figures.metrics().items()
    ]
    write_report(folder / "train.json", results, version=version, seconds=dict(seconds), **document(facts))
    (folder / "train.html").write_text(training_page(facts, version, seconds).html(), encoding="utf-8")
    (folder / "model_card.html").write_text(card_page(facts).html(), encoding="utf-8")


def document(facts: TrainingFacts) -> dict[str, Any]:
    """Return everything of a training as one JSON document."""
    figures = facts.figures
    return {
        "model_name": facts.manifest.model_name,
        "bundle_sha256": facts.bundle_sha256,
        "data_version": facts.manifest.data_version,
        "git_commit": facts.manifest.git_commit,
        "interval": facts.manifest.training.model_dump(mode="json"),
        "metrics": figures.metrics(),
        "intervals": {name: asdict(interval) for name, interval in figures.known_viewers[HYBRID].items()},
        "known_viewers": {"viewers": figures.viewers, **_plain(figures.known_viewers)},
        "new_viewers": {NDCG: asdict(figures.new_viewers)},
        "new_movies": {
            "movies": figures.cold_start.movies,
            "viewers": figures.cold_start.viewers,
            "better_than_popularity": asdict(figures.cold_start.better_than_popularity),
            **_plain(figures.cold_start.measures),
        },
        "slices": figures.slices,
        "blend": asdict(facts.blend),
        "blend_trials": [trial.as_row() for trial in facts.trials],
        "rows": dict(facts.rows),
        "parameters": dict(facts.parameters),
    }


def _figure_sections(facts: TrainingFacts) -> list[Section]:
    figures, plots = facts.figures, facts.plots
    cold = figures.cold_start
    gain = ranged(cold.better_than_popularity)
    slices = [[f["slice"], f["measure"], f["rows"], _text(f)] for f in figures.slices]
    return [
        Section(
            "Known viewers",
            [
                Text(
                    f"{figures.viewers:,} viewers: what each rated last is to be found, among unseen movies."
                ),
                measures_table(figures.known_viewers),
                Text(
                    "95 % intervals: viewers are drawn with replacement. Coverage of a draw is that of its"
                    " distinct viewers, so its interval lies below the value.",
                    caption=True,
                ),
                Text(f"The same viewers without their history (new viewers): {ranged(figures.new_viewers)}."),
                Plots({"known_viewers": plots["known_viewers"]}),
            ],
        ),
        Section(
            "New movies",
            [
                Text(
                    f"{cold.movies:,} movies were kept out of everything and the recipe fitted again; they"
                    f" are ranked among themselves for {cold.viewers:,} viewers. No rating of them can be"
                    " counted, so popularity is that of their genres."
                ),
                measures_table(cold.measures),
                Text(f"The hybrid's nDCG@10 minus that of popularity: {gain}."),
                Plots({"new_movies": plots["new_movies"]}),
            ],
        ),
        Section(
            "Groups",
            [
                Table(["group", "measure", "rows", "value (95 % interval)"], slices),
                Plots({name: plots[name] for name in ("viewers_by_history", "movies_by_age_and_popularity")}),
            ],
        ),
    ]


def measures_table(measures: Measures) -> Table:
    """Return a row for each recommender, a column for each measure with its interval."""
    names = list(next(iter(measures.values())))
    return Table(
        ["recommender", *names],
        [[who, *(ranged(each[name]) for name in names)] for who, each in measures.items()],
    )


def _text(figure: Mapping[str, Any]) -> str:
    return ranged(Interval(float(figure["value"]), float(figure["lower"]), float(figure["upper"])))


def _kind(figures: HoldoutFigures) -> Any:
    known = figures.known_viewers
    better = known[HYBRID][NDCG].value > known[SAR][NDCG].value
    return "good" if better and figures.cold_start.better_than_popularity.lower > 0 else "warning"


def _provenance(facts: TrainingFacts) -> dict[str, Any]:
    manifest, training = facts.manifest, facts.manifest.training
    return {
        "feature service": f"{manifest.feature_service} ({facts.contract_sha256[:12]})",
        "ratings in training": training.rows,
        "first and last of them": f"{training.start:%Y-%m-%d} to {training.end:%Y-%m-%d}",
        "known as of": training.holdout_end.isoformat(),
        "data version": manifest.data_version,
        "code": manifest.git_commit,
        "bundle": facts.bundle_sha256,
        "data": "MovieLens latest small (GroupLens; Harper and Konstan 2015)",
    }


def _plain(measures: Measures) -> dict[str, Any]:
    return {who: {name: asdict(value) for name, value in each.items()} for who, each in measures.items()}
