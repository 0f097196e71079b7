"""The model card: what a model is for, what it learned from, how well it does on whom, and its limits.

A training writes one for each version, as HTML, Markdown and JSON; docs/model-card.md says how to read it. No
clock is read: the same training gives the same card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from common_ml_utils.data_schemas.training_data_contract import FeatureServiceContract, VectorFeature
from common_ml_utils.evaluation_utils import (
    ActionCosts,
    Estimate,
    ThresholdOutcome,
    action_cost_summary,
    threshold_outcome,
)
from common_ml_utils.explanations import Reason, ReasonCodes, mean_absolute
from common_ml_utils.pages import DASH, Block, Bullets, Facts, Note, Page, Plots, Section, Table, Text
from common_ml_utils.release_bundle import Manifest, ReasonCode
from common_ml_utils.slices import EVEN, TOO_FEW, SliceMetrics, Slices, slice_metrics, whole

FOLDER = "model_card"
CARD_JSON = f"{FOLDER}/model_card.json"
SLICE_COLUMNS = (
    *("rows", "positives", "base rate", "AUC ROC", "average precision"),
    "calibration error",
)
RATE_COLUMNS = ("alert rate", "false positive rate", "recall")


class CardText(BaseModel):
    """The words of a card that no computation can give; a project writes them in `src/card.py`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str
    purpose: str
    """What the score says, of whom, and what is done with it."""
    intended_use: tuple[str, ...]
    not_for: tuple[str, ...]
    data: str
    """Where the rows come from."""
    fairness: str
    """Which groups are looked at, and what may and may not differ between them."""
    limits: tuple[str, ...]
    rows: str = "rows"
    """What a row is, in the plural: `payments`."""
    positives: str = "positives"
    """What a positive is, in the plural: `frauds`."""
    currency: str = ""
    """What costs are counted in."""


@dataclass(frozen=True)
class Example:
    """The explanation of one row, without anything that tells which one it is."""

    which: str
    score: float
    reasons: list[Reason]


@dataclass(frozen=True)
class Importance:
    """Mean |SHAP| in log-odds by feature and by reason code, largest first, over `rows` sampled rows."""

    by_feature: dict[str, float]
    by_code: dict[str, float]
    rows: int


@dataclass(frozen=True)
class HoldoutMeasures:
    """All that was measured on rows the model had not seen; rates are those of the first threshold.

    `metrics` are the plain figures by name, the model's own among them.
    """

    overall: SliceMetrics
    slices: list[SliceMetrics]
    metrics: dict[str, float]
    thresholds: list[ThresholdOutcome]
    costs: ActionCosts
    importance: Importance
    examples: list[Example]


@dataclass(frozen=True)
class Card:
    """Everything on a card; `version` is known once the model is registered."""

    text: CardText | None
    manifest: Manifest
    bundle_sha256: str
    service: FeatureServiceContract
    reason_codes: Mapping[str, ReasonCode]
    label: str
    label_delay: timedelta
    measures: HoldoutMeasures
    folds: Sequence[Mapping[str, float]]
    parameters: Mapping[str, Any]
    raw_data: str
    plots: Mapping[str, bytes]
    version: int | None = None

    @property
    def name(self) -> str:
        """Model and version, or the bundle's hash before there is a version."""
        which = f"version {self.version}" if self.version else f"bundle {self.bundle_sha256[:12]}"
        return f"{self.manifest.model_name}, {which}"


@dataclass(frozen=True)
class ScoredRows:
    """Rows a model had not seen, with what is needed to measure it; shape (rows,), `costs` (rows, 3).

    Rows of one of `groups` are not independent.
    """

    labels: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    costs: np.ndarray
    slices: Slices


def measure_holdout(
    rows: ScoredRows,
    thresholds: Mapping[str, float],
    metrics: Mapping[str, float],
    importance: Importance,
    examples: list[Example],
) -> HoldoutMeasures:
    """Measure the whole and the slices with intervals over whole groups, every threshold, and the costs."""
    labels, scores, groups = rows.labels, rows.scores, rows.groups
    cuts = list(thresholds.values())
    overall, *parts = slice_metrics(labels, scores, groups, {**whole(len(labels)), **rows.slices}, cuts[0])
    return HoldoutMeasures(
        overall=overall,
        slices=parts,
        metrics=dict(metrics),
        thresholds=[threshold_outcome(name, cut, labels, scores, groups) for name, cut in thresholds.items()],
        costs=action_cost_summary(scores, rows.costs, (cuts[0], cuts[1]), groups),
        importance=importance,
        examples=examples,
    )


def importance_of(codes: ReasonCodes, features: Sequence[str], contributions: np.ndarray) -> Importance:
    """Return what moves scores most; `contributions` in log-odds, shape (rows, features)."""
    return Importance(
        by_feature=mean_absolute(features, contributions),
        by_code=mean_absolute(codes.codes, codes.sums(contributions)),
        rows=len(contributions),
    )


def example_reasons(
    codes: ReasonCodes, contributions: np.ndarray, scores: np.ndarray, thresholds: Mapping[str, float]
) -> list[Example]:
    """Explain the highest score, the one just above each threshold, and the median one."""
    wanted = {"highest score": int(np.argmax(scores))}
    for name, cut in reversed(list(thresholds.items())):
        if (above := np.flatnonzero(scores >= cut)).size:
            wanted[f"just above {name}"] = int(above[np.argmin(scores[above])])
    wanted["median score"] = int(np.argsort(scores, kind="stable")[len(scores) // 2])
    reasons = codes.reasons(contributions)
    return [Example(which, float(scores[row]), reasons[row]) for which, row in wanted.items()]


def card_files(card: Card) -> dict[str, bytes]:
    """Return the card as files: HTML and Markdown to read, JSON to compare versions by."""
    page = card_page(card)
    return {
        f"{FOLDER}/model_card.html": page.html().encode(),
        f"{FOLDER}/model_card.md": page.markdown("../plots").encode(),
        CARD_JSON: json.dumps(card_document(card), indent=1, allow_nan=False).encode() + b"\n",
    }


def card_document(card: Card) -> dict[str, Any]:
    """Return the card as JSON; versions are compared by `intervals`, `interval`, `rows`, `features`."""
    training, overall = card.manifest.training, card.measures.overall
    compared = {
        "average_precision": overall.average_precision,
        "auc_roc": overall.auc_roc,
        "brier": overall.brier,
    }
    return {
        "format_version": 1,
        "model_name": card.manifest.model_name,
        "model_version": card.version,
        "bundle_sha256": card.bundle_sha256,
        "intervals": {name: asdict(measured) for name, measured in compared.items() if measured},
        "interval": training.model_dump(mode="json"),
        "rows": {"training": training.rows, "holdout": overall.rows},
        "manifest": card.manifest.model_dump(mode="json"),
        "text": None if card.text is None else card.text.model_dump(mode="json"),
        "label": card.label,
        "label_delay_days": card.label_delay / timedelta(days=1),
        "features": card.service.feature_names,
        "reason_codes": {name: code.model_dump() for name, code in card.reason_codes.items()},
        "parameters": {name: str(value) for name, value in card.parameters.items()},
        "raw_data": card.raw_data,
        "folds": [dict(fold) for fold in card.folds],
        "measures": asdict(card.measures),
    }


def card_page(card: Card) -> Page:
    """Return the card as a page."""
    sections = [
        *_use(card.text),
        Section("What it learned from", _data(card)),
        Section("How well it does", performance_blocks(card)),
        Section("Thresholds and what they cost", threshold_blocks(card)),
        Section("Groups", groups_blocks(card)),
        Section("What moves the score", explanation_blocks(card)),
        Section("Features", _features(card)),
        *_limits(card.text),
        Section("Where it comes from", [Facts(_provenance(card))]),
    ]
    subtitle = "" if card.text is None else f"Owner: {card.text.owner}"
    return Page(f"Model card: {card.name}", subtitle, [summary(card)], sections, "Times are UTC.")


def summary(card: Card) -> Note:
    """Say in a few sentences how good the model is, whether its scores are right, and what acting saves."""
    overall, costs = card.measures.overall, card.measures.costs
    words, money = _words(card.text), _currency(card.text)
    lines = [
        f"AUC ROC {ranged(overall.auc_roc)}, average precision {ranged(overall.average_precision)} on "
        f"{overall.rows:,} {words.rows} with {overall.positives:,} {words.positives} it had not seen "
        f"({_share(overall.base_rate)})."
    ]
    bias = overall.calibration_bias
    biased = bias is not None and not bias.lower <= 0 <= bias.upper
    if bias is not None and biased:
        side = "above" if bias.value > 0 else "below"
        lines.append(f"Scores stand {side} the observed rate: by {ranged(bias, signed=True)} on average.")
    elif bias is not None:
        lines.append(
            f"Scores are right on average: mean score minus observed rate {ranged(bias, signed=True)}, "
            f"calibration error {overall.calibration_error:.4f}."
        )
    if saved := costs.saved_a_row:
        lines.append(
            f"Acting at its thresholds saves {ranged(saved, scale=1000, digits=0)}{money} per 1,000 "
            f"{words.rows} against not acting."
        )
    return Note("warning" if biased else "good", lines)


def _use(text: CardText | None) -> list[Section]:
    if text is None:
        return [Section("What it is for", [Text("The project has not written this down (`src/card.py`).")])]
    return [
        Section("What it is for", [Text(text.purpose), Bullets(text.intended_use)]),
        Section("What it is not for", [Bullets(text.not_for)]),
    ]


def _limits(text: CardText | None) -> list[Section]:
    return [] if text is None else [Section("Limits", [Bullets(text.limits)])]


def _data(card: Card) -> list[Block]:
    trained, overall, words = card.manifest.training, card.measures.overall, _words(card.text)
    rows = {
        "Trained on": f"{interval_text(trained.start, trained.end)}: {trained.rows:,} {words.rows}, "
        f"{trained.positives:,} {words.positives} ({_share(trained.positives / trained.rows)})",
        "Measured on": f"{interval_text(trained.holdout_start, trained.holdout_end)}: {overall.rows:,} "
        f"{words.rows}, {overall.positives:,} {words.positives} ({_share(overall.base_rate)}), none of them "
        "trained on",
        "Label": f"{card.label}, policy version {card.manifest.label_policy_version}; a label counts once "
        f"it is known, {card.label_delay / timedelta(days=1):g} days after the event",
        "Feature service": f"{card.service.name}: {len(card.service.features)} features as of each event",
        "Data version": card.manifest.data_version,
        "Raw files": card.raw_data,
    }
    about: list[Block] = [Text(card.text.data)] if card.text else []
    return [*about, Facts(rows)]


def performance_blocks(card: Card) -> list[Block]:
    """Return the metrics with intervals, and the curves behind them."""
    overall, words = card.measures.overall, _words(card.text)
    on = f"{overall.rows:,} {words.rows}"
    rows: list[list[Any]] = [
        ["AUC ROC", ranged(overall.auc_roc), on, _fold_text(card.folds, "auc_roc")],
        [
            "average precision",
            ranged(overall.average_precision),
            on,
            _fold_text(card.folds, "average_precision"),
        ],
        ["Brier score", ranged(overall.brier), on, _fold_text(card.folds, "brier")],
        [
            "calibration error",
            DASH if overall.calibration_error is None else f"{overall.calibration_error:.4f}",
            on,
            _fold_text(card.folds, "calibration_error"),
        ],
        ["mean score - observed rate", ranged(overall.calibration_bias, signed=True), on, DASH],
    ]
    rows += [
        [name.replace("_", " "), f"{value:.4f}", on, DASH]
        for name, value in card.measures.metrics.items()
        if name not in card.folds[0]
    ]
    folds = f"{len(card.folds)} folds" if len(card.folds) > 1 else "the validation rows"
    return [
        Table(["metric", "holdout (95 % interval)", "measured on", f"mean over {folds}"], rows),
        Text(
            "Intervals: the central 95 % of 200 bootstrap resamples that draw whole "
            f"{_group_word(card)}, as their rows are not independent.",
            caption=True,
        ),
        _some_plots(
            card,
            {
                "precision_recall": "Precision and recall on the holdout, with the thresholds",
                "calibration": "Observed rate against mean score",
            },
        ),
    ]


def threshold_blocks(card: Card) -> list[Block]:
    """Return what each threshold does and what acting by them costs."""
    costs, words, money = card.measures.costs, _words(card.text), _currency(card.text)
    rows = [
        [
            outcome.name,
            f"{outcome.threshold:.4f}",
            f"{outcome.alerts:,} of {card.measures.overall.rows:,}",
            ranged(outcome.alert_rate, percent=True),
            ranged(outcome.precision, percent=True),
            ranged(outcome.recall, percent=True),
            ranged(outcome.false_positive_rate, percent=True),
        ]
        for outcome in card.measures.thresholds
    ]
    spent = {
        "No action": f"{costs.no_action:,.0f}{money}",
        "The best single action for all": f"{costs.best_single_action:,.0f}{money}",
        "These thresholds": f"{costs.policy:,.0f}{money}",
        f"Saved per 1,000 {words.rows}": ranged(costs.saved_a_row, scale=1000, digits=0) + money,
    }
    columns = [
        "threshold",
        "score from",
        "at or above",
        "alert rate",
        "precision",
        "recall",
        "false positive rate",
    ]
    return [
        Table(columns, rows),
        Text(
            "Thresholds are those of the least expected cost on validation rows; the figures are of the "
            "holdout. What acting would have cost there:"
        ),
        Facts(spent),
        _some_plots(
            card,
            {
                name: f"What happens from {name.removeprefix('confusion_matrix_')} on"
                for name in card.plots
                if name.startswith("confusion_matrix_")
            },
        ),
    ]


def groups_blocks(card: Card) -> list[Block]:
    """Return the slices' figures, their disparity, and what stands out."""
    first, slices = card.measures.thresholds[0], card.measures.slices
    if not slices:
        return [Text("The project names no groups to look at.")]
    figures = [
        [
            part.name,
            part.rows,
            part.positives,
            _share(part.base_rate),
            ranged(part.auc_roc, digits=2),
            ranged(part.average_precision, digits=2),
            DASH if part.calibration_error is None else f"{part.calibration_error:.3f}",
        ]
        for part in slices
    ]
    rates = [
        [
            part.name,
            ranged(part.alert_rate, percent=True),
            ranged(part.false_positive_rate, percent=True),
            ranged(part.recall, percent=True),
            ranged(part.calibration_bias, signed=True),
        ]
        for part in slices
    ]
    ratios = [
        [
            part.name,
            ranged(part.disparity.alert_rate, digits=2),
            ranged(part.disparity.false_positive_rate, digits=2),
            ranged(part.disparity.recall, digits=2),
        ]
        for part in slices
    ]
    blocks: list[Block] = [Text(card.text.fairness)] if card.text else []
    if uneven := [_uneven_text(part) for part in slices if part.disparity.uneven]:
        blocks.append(Note("plain", ["Unlike all other rows, beyond what chance explains:", *uneven]))
    blocks += [
        Table(
            ["group", *SLICE_COLUMNS],
            figures,
        ),
        _some_plots(card, {"slices": "Average precision and false positive rate of each group"}),
        Text(f"Acting on scores from {first.threshold:.4f} ({first.name}) on:"),
        Table(["group", *RATE_COLUMNS, "mean score - observed rate"], rates),
        Text("The rates as ratios to those of all rows outside the group:"),
        Table(["group", *RATE_COLUMNS], ratios),
        Text(
            f"A ratio counts as uneven when its whole interval lies outside of {EVEN[0]} to {EVEN[1]} (four "
            "fifths, both ways). Alert rates differ where base rates do; false positive rate and recall tell "
            "whether a group bears more of the errors.",
            caption=True,
        ),
    ]
    if few := [f"{part.name} ({part.note.removeprefix(TOO_FEW)})" for part in slices if part.note]:
        blocks.append(Text(f"{DASH} means {TOO_FEW}{'; '.join(few)}.", caption=True))
    return blocks


def explanation_blocks(card: Card) -> list[Block]:
    """Return the reason codes by importance, how features act, and examples."""
    importance = card.measures.importance
    texts = {reason.code: reason.text for reason in card.reason_codes.values()}
    members: dict[str, list[str]] = {}
    for feature in card.service.feature_names:
        members.setdefault(card.reason_codes[feature].code, []).append(feature)
    codes = [
        [code, texts[code], ", ".join(members[code]), f"{value:.3f}"]
        for code, value in importance.by_code.items()
    ]
    examples = [
        [example.which, f"{example.score:.4f}", _reasons_text(example.reasons)]
        for example in card.measures.examples
    ]
    return [
        Table(["reason code", "what it says", "features", "mean |SHAP|"], codes),
        Text(
            f"Mean |SHAP| in log-odds over {importance.rows:,} holdout rows; contributions of features that "
            "share a code are summed. 0.69 doubles or halves the odds.",
            caption=True,
        ),
        Text("Examples: the codes that raise a score, with their contributions in log-odds."),
        Table(["row", "score", "reasons"], examples),
        _some_plots(
            card,
            {
                "shap_summary": "Each point is a row: to the right, the feature raised its score",
                "shap_dependence": "How the features that matter most act",
            },
        ),
    ]


def _features(card: Card) -> list[Block]:
    by_feature = card.measures.importance.by_feature
    specs = {feature.name: feature for feature in card.service.features}
    rows = [
        [
            name,
            specs[name].type,
            specs[name].source,
            _missing(specs[name]),
            card.reason_codes[name].code,
            f"{value:.3f}",
        ]
        for name, value in by_feature.items()
    ]
    columns = ["feature", "type", "from", "when missing", "reason code", "mean |SHAP|"]
    return [Table(columns, rows)]


def _provenance(card: Card) -> dict[str, Any]:
    manifest = card.manifest
    return {
        "Model": f"{manifest.model_name}, {manifest.model_kind} ({manifest.model_file})",
        "Release bundle (SHA-256)": card.bundle_sha256,
        "Model file (SHA-256)": manifest.files[manifest.model_file],
        "Code (git commit)": manifest.git_commit,
        "Data version (SHA-256)": manifest.data_version,
        "Parameters": ", ".join(f"{name} {value}" for name, value in card.parameters.items()),
    }


def ranged(
    estimate: Estimate | None,
    *,
    percent: bool = False,
    signed: bool = False,
    scale: float = 1,
    digits: int = 3,
) -> str:
    """Return a value with its interval in parentheses, or a dash.

    >>> ranged(Estimate(0.5, 0.25, 0.75), percent=True)
    '50.0 % (25.0 to 75.0)'
    """
    if estimate is None:
        return DASH
    sign = "+" if signed else ""
    form = f"{sign}.1f" if percent else f"{sign},.{digits}f"
    value, lower, upper = (
        format(number * (100 if percent else scale), form)
        for number in (estimate.value, estimate.lower, estimate.upper)
    )
    return f"{value}{' %' if percent else ''} ({lower} to {upper})"


def interval_text(start: datetime, end: datetime) -> str:
    """Return an interval [start, end) of days, or the day of a single snapshot.

    >>> interval_text(datetime(2024, 1, 1), datetime(2024, 1, 8))
    '2024-01-01 to 2024-01-07'
    """
    if start == end:
        return f"snapshot of {start:%Y-%m-%d}"
    return f"{start:%Y-%m-%d} to {end - timedelta(microseconds=1):%Y-%m-%d}"


@dataclass(frozen=True)
class _Words:
    rows: str
    positives: str


def _words(text: CardText | None) -> _Words:
    return _Words("rows", "positives") if text is None else _Words(text.rows, text.positives)


def _currency(text: CardText | None) -> str:
    return f" {text.currency}" if text and text.currency else ""


def _group_word(card: Card) -> str:
    return f"groups by {card.service.join_keys[0]}"


def _share(value: float | None) -> str:
    return DASH if value is None else f"{value:.2%}".replace("%", " %")


def _fold_text(folds: Sequence[Mapping[str, float]], metric: str) -> str:
    values = [fold[metric] for fold in folds]
    if not values:
        return DASH
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _reasons_text(reasons: Sequence[Reason]) -> str:
    return ", ".join(f"{reason.code} +{reason.contribution:.2f}" for reason in reasons) or "nothing raises it"


def _uneven_text(part: SliceMetrics) -> str:
    ratios = part.disparity.uneven.items()
    return f"{part.name}: {', '.join(f'{name} {ratio.value:.2f} times theirs' for name, ratio in ratios)}"


def _missing(feature: VectorFeature) -> str:
    return f"{feature.default}" if feature.on_missing == "default" else feature.on_missing


def _some_plots(card: Card, captions: Mapping[str, str]) -> Block:
    present = {name: caption for name, caption in captions.items() if name in card.plots}
    return Plots({name: card.plots[name] for name in present}, present)
