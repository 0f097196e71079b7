"""The published random protocol on MovieLens 100K: `python -m src.benchmark_ml100k`. No stack is needed.

A random 75 % of the ratings train, 25 % are to be found, all of them relevant whatever their height; movies
of a viewer's training part are left out of the list; k = 10, binary relevance. So are the figures of
Microsoft's recommenders repository ("Benchmark"). Parameters are chosen on a split inside the training part.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from scipy.sparse import csr_matrix
from tqdm import tqdm

from common_ml_utils.errors import ModelDevelopmentError
from common_ml_utils.hybrid_recommender import BlendWeights, content_features, content_matrix
from common_ml_utils.pages import Facts, Note, Page, Plots, Section, Table
from common_ml_utils.reports import StepClock, measurement, write_report
from src.card import measures_table, ranged
from src.config import IDENTITY, BlendGrid, CollaborativeParameters, ContentParameters
from src.evaluation import HYBRID, NDCG, Audience, Measures, measure_known_viewers
from src.figures import bars_with_intervals
from src.hybrid import Catalogue, Trial, choose_blend, fit_hybrid, with_blend
from src.measures import Lists, top_lists, viewer_measures
from src.ml100k import fetched, read_movies, read_ratings
from src.preprocessor import interactions

REPOSITORY = Path(__file__).resolve().parents[4]
SEED = 42
TEST_SHARE = 0.25
RESAMPLES = 1000
TARGETS = {"floor": 0.442, "aim": 0.475}
PUBLISHED = {
    "BiVAE": (0.475, 0.412),
    "BPR": (0.442, 0.388),
    "LightGCN": (0.420, 0.380),
    "SAR": (0.382, 0.331),
    "SVD": (0.096, 0.091),
    "ALS": (0.044, 0.048),
}
"""nDCG@10 and precision@10 of the benchmark of github.com/recommenders-team/recommenders."""
CANDIDATES = tuple(
    CollaborativeParameters(minimum_ratings=1, **values)
    for values in (
        {"ease_regularization": 500.0, "als_factors": 16, "als_regularization": 30.0},
        {"ease_regularization": 300.0, "als_factors": 16, "als_regularization": 30.0},
        {"ease_regularization": 500.0, "als_factors": 24, "als_regularization": 40.0},
        {"ease_regularization": 500.0, "als_factors": 32, "als_regularization": 40.0},
        {"ease_regularization": 500.0, "ease_rank": 2000, "als_factors": 16, "als_regularization": 30.0},
    )
)
GRID = BlendGrid(als_shares=(0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0))
START = BlendWeights(0.5, 0.0, 0.0, 0.0, 0.25, 10.0)


class BenchmarkSettings(BaseSettings):
    """Where the data is kept and the report goes; the stack's settings where it is up."""

    model_config = SettingsConfigDict(populate_by_name=True, frozen=True, extra="ignore")

    data_dir: Path = Field(default=REPOSITORY / ".local" / "data", validation_alias="DATA_DIR")
    reports_dir: Path = Field(default=REPOSITORY / ".local" / "reports", validation_alias="REPORTS_DIR")


def random_split(ratings: csr_matrix, share: float, seed: int) -> tuple[csr_matrix, csr_matrix]:
    """Cut who rated what at random; the same seed gives the same parts."""
    rows, columns = ratings.nonzero()
    order = np.random.default_rng(seed).permutation(len(rows))
    kept = round(len(rows) * (1 - share))

    def part(chosen: np.ndarray) -> csr_matrix:
        ones = np.ones(len(chosen), dtype=np.float32)
        return csr_matrix((ones, (rows[chosen], columns[chosen])), shape=ratings.shape)

    return part(order[:kept]), part(order[kept:])


def choose(
    training: csr_matrix, catalogue: Catalogue, content: ContentParameters
) -> tuple[CollaborativeParameters, BlendWeights, list[Trial], list[float]]:
    """Choose parameters and mixture on a random quarter of the training part; the test part is not seen."""
    fit, validation = random_split(training, TEST_SHARE, SEED + 1)
    audience = Audience.of(np.arange(training.shape[0]), fit, validation)

    def ndcg(parameters: CollaborativeParameters) -> float:
        model = fit_hybrid(fit, catalogue, parameters, content, START)
        scores = model.scores(_ids(catalogue, audience.histories))
        lists = top_lists(scores, audience.histories)
        return float(viewer_measures(Lists(lists, audience.relevant))[NDCG].mean())

    measured = [ndcg(candidate) for candidate in tqdm(CANDIDATES, desc="parameters", disable=None)]
    best = CANDIDATES[int(np.argmax(measured))]
    model = fit_hybrid(fit, catalogue, best, content, START)
    blend, trials = choose_blend(model, audience.histories, audience.relevant, GRID)
    return best, blend, trials, measured


def run(settings: BenchmarkSettings) -> Measures:
    """Fetch, choose, fit, measure and report; returns the measures of the hybrid and the baselines."""
    clock, content = StepClock(), ContentParameters()
    with clock.step("fetch"):
        folder = fetched(settings.data_dir / "ml-100k")
    with clock.step("read"):
        ratings, movies = read_ratings(folder), read_movies(folder)
        features = content_features(tuple(movies.columns))
        catalogue = Catalogue(movies["movie_id"].to_numpy(), content_matrix(movies, features), features)
        viewers = np.unique(ratings["viewer_id"])
        who_rated_what = interactions(ratings, viewers, catalogue.movie_ids)
        training, test = random_split(who_rated_what, TEST_SHARE, SEED)
    with clock.step("choose"):
        parameters, blend, trials, measured = choose(training, catalogue, content)
    with clock.step("fit"):
        model = fit_hybrid(training, catalogue, parameters, content, blend)
    with clock.step("measure"):
        audience = Audience.of(viewers, training, test)
        measures, _ = measure_known_viewers(model, training, audience, RESAMPLES)
        for name, alone in {"EASE alone": 0.0, "ALS alone": 1.0}.items():
            part = with_blend(model, replace(blend, als_share=alone, content_share=0.0))
            measures[name] = measure_known_viewers(part, training, audience, RESAMPLES)[0][HYBRID]
    report = settings.reports_dir / IDENTITY.report / "ml100k"
    plot = bars_with_intervals(
        "MovieLens 100K, random 75/25: nDCG@10",
        {name: each[NDCG] for name, each in measures.items()},
        {f"{name} (published)": values[0] for name, values in PUBLISHED.items()},
    )
    ours = measures[HYBRID]
    results = [
        measurement(f"{NDCG} {name}", ours[NDCG].value, "ratio", target=target, peer=peer, peer_value=value)
        for (name, target), (peer, value) in zip(
            TARGETS.items(), (("BPR", PUBLISHED["BPR"][0]), ("BiVAE", PUBLISHED["BiVAE"][0])), strict=True
        )
    ]
    write_report(
        report.with_suffix(".json"),
        results,
        protocol=" ".join((__doc__ or "").split()),
        seed=SEED,
        measures={name: {key: vars(value) for key, value in each.items()} for name, each in measures.items()},
        published={
            name: {"ndcg_at_10": values[0], "precision_at_10": values[1]}
            for name, values in PUBLISHED.items()
        },
        parameters={**parameters.model_dump(), **content.model_dump()},
        blend=vars(blend),
        validation=[
            {"parameters": c.model_dump(), NDCG: value} for c, value in zip(CANDIDATES, measured, strict=True)
        ],
        blend_trials=[trial.as_row() for trial in trials],
        seconds=clock.seconds,
    )
    page = Page(
        title="MovieLens 100K, published random protocol",
        subtitle=" ".join((__doc__ or "").split("\n\n")[1].split()),
        summary=[
            Note(
                "good" if ours[NDCG].value >= TARGETS["aim"] else "warning",
                [f"nDCG@10 {ranged(ours[NDCG])}; the best published figure is {PUBLISHED['BiVAE'][0]:.3f}."],
            ),
            Plots({"ndcg": plot}),
        ],
        sections=[
            Section("Measured in this run", [measures_table(measures)]),
            Section(
                "Published",
                [Table(["recommender", "nDCG@10", "P@10"], [[name, *v] for name, v in PUBLISHED.items()])],
            ),
            Section("Chosen inside the training part", [Facts(vars(blend)), Facts(parameters.model_dump())]),
            Section("Seconds", [Facts(clock.seconds)]),
        ],
    )
    report.with_suffix(".html").write_text(page.html(), encoding="utf-8")
    return measures


def _ids(catalogue: Catalogue, histories: csr_matrix) -> list[np.ndarray]:
    return [catalogue.movie_ids[row] for row in np.split(histories.indices, histories.indptr[1:-1])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 and one line where the data can't be had."""
    parser = argparse.ArgumentParser(prog="python -m src.benchmark_ml100k", description=__doc__)
    parser.parse_args(arguments)
    try:
        measures = run(BenchmarkSettings())
    except ModelDevelopmentError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for name, each in measures.items():
        print(f"{name}: " + ", ".join(f"{key} {value.value:.4f}" for key, value in each.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
