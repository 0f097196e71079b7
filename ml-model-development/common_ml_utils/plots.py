"""Plots as PNG bytes: confusion, precision-recall, calibration, SHAP, groups, metrics over versions."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from sklearn.metrics import average_precision_score, precision_recall_curve

from common_ml_utils.evaluation_utils import Estimate, calibration_table, confusion_at
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.slices import SliceMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHAP_FEATURES = 20
DEPENDENCE_FEATURES = 4
SHAP_ROWS = 2000


@dataclass(frozen=True)
class ShapSample:
    """Rows of the model's matrix with their SHAP values in log-odds, both of shape (rows, features)."""

    preprocessing: Preprocessing
    matrix: np.ndarray
    contributions: np.ndarray


def model_plots(
    labels: np.ndarray, scores: np.ndarray, thresholds: dict[str, float], shap: ShapSample
) -> dict[str, bytes]:
    """Return name -> PNG of every plot a training run records, drawn on the holdout."""
    plots = {
        f"confusion_matrix_{name}": confusion_matrix(labels, scores, name, threshold)
        for name, threshold in thresholds.items()
    }
    plots["precision_recall"] = precision_recall(labels, scores, thresholds)
    plots["calibration"] = calibration(labels, scores)
    plots["shap_summary"] = shap_summary(shap)
    plots["shap_dependence"] = shap_dependence(shap)
    return plots


def confusion_matrix(labels: np.ndarray, scores: np.ndarray, name: str, threshold: float) -> bytes:
    """Draw the four outcomes of acting at a threshold, shaded by share of the actual class."""
    outcome = confusion_at(labels, scores, threshold)
    counts = np.array(
        [
            [outcome["true_negative"], outcome["false_positive"]],
            [outcome["false_negative"], outcome["true_positive"]],
        ]
    )
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _new(4.8, 4.2)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = f"{count:,}\n{share[row, column]:.1%}"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_xticks([0, 1], ["below", f"{name} or above"])
    axes.set_yticks([0, 1], ["negative", "positive"])
    axes.set(xlabel="score", ylabel="label", title=f"{name}: score >= {threshold:.3f}")
    return _png(figure)


def precision_recall(labels: np.ndarray, scores: np.ndarray, thresholds: dict[str, float]) -> bytes:
    """Draw precision against recall, with the thresholds as points."""
    precision, recall, cuts = precision_recall_curve(labels, scores)
    figure, axes = _new(6, 4.5)
    axes.step(recall, precision, where="post", label=f"AP {average_precision_score(labels, scores):.3f}")
    axes.axhline(labels.mean(), linestyle=":", color="grey", label=f"base rate {labels.mean():.4f}")
    for name, threshold in thresholds.items():
        at = min(int(np.searchsorted(cuts, threshold)), len(cuts) - 1)
        axes.plot(recall[at], precision[at], "o", label=f"{name} at {threshold:.3f}")
    axes.set(
        xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02), title="Precision and recall"
    )
    axes.legend()
    return _png(figure)


def calibration(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> bytes:
    """Draw the observed rate against the mean score of bins with equally many rows, on logarithmic axes."""
    table = calibration_table(labels, scores, bins)
    floor = max(float(table["predicted"].min()), 1e-5) / 2
    figure, axes = _new(5, 4.5)
    axes.plot([floor, 1], [floor, 1], linestyle=":", color="grey", label="calibrated")
    axes.plot(table["predicted"], table["observed"].clip(lower=floor), "o-", label="model")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(
        xlabel="mean score of the bin",
        ylabel="observed rate (none: at the lower edge)",
        title=f"Calibration, {len(table)} bins",
    )
    axes.legend()
    return _png(figure)


def shap_summary(sample: ShapSample) -> bytes:
    """Draw each feature's SHAP values (log-odds), coloured by the feature's rank from low to high.

    Features stand by mean |SHAP|, largest on top; a point is a row. Categories, which have no order, and
    nulls are grey.
    """
    names, unordered = sample.preprocessing.names, set(sample.preprocessing.categorical_indexes)
    order = np.argsort(np.abs(sample.contributions).mean(axis=0))[-SHAP_FEATURES:]
    rng = np.random.default_rng(0)
    figure, axes = _new(8, 0.32 * len(order) + 1.4)
    axes.axvline(0, color="grey", linewidth=0.8)
    colours = ScalarMappable(Normalize(0, 1), "coolwarm")
    for height, feature in enumerate(order):
        values, shap = sample.matrix[:, feature], sample.contributions[:, feature]
        ordered = ~np.isnan(values) & (feature not in unordered)
        jitter = height + rng.uniform(-0.3, 0.3, len(values))
        axes.scatter(shap[~ordered], jitter[~ordered], s=3, color="grey")
        axes.scatter(shap[ordered], jitter[ordered], s=3, c=colours.to_rgba(_rank(values[ordered])))
    axes.set_yticks(range(len(order)), [names[feature] for feature in order])
    axes.set(xlabel="SHAP value (log-odds)", title="What moves the score")
    bar = figure.colorbar(colours, ax=axes, ticks=[0, 1])
    bar.ax.set_yticklabels(["low", "high"])
    bar.set_label("feature value (grey: a category or null)")
    return _png(figure)


def shap_dependence(sample: ShapSample) -> bytes:
    """Draw SHAP value (log-odds) against value for the features that move scores most; a point is a row.

    A skewed feature has a logarithmic axis; nulls stand to the left of the dashed line.
    """
    names, categories = sample.preprocessing.names, sample.preprocessing.features
    order = np.argsort(-np.abs(sample.contributions).mean(axis=0), kind="stable")[:DEPENDENCE_FEATURES]
    rng = np.random.default_rng(0)
    figure, panels = _new_row(3.4 * len(order), 3.4, len(order))
    for axes, feature in zip(panels, order, strict=True):
        values, shap = sample.matrix[:, feature], sample.contributions[:, feature]
        known, levels = ~np.isnan(values), categories[feature].categories
        spread = rng.uniform(-0.25, 0.25, len(values)) if levels else np.zeros(len(values))
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.scatter((values + spread)[known], shap[known], s=4, alpha=0.5, color="tab:blue")
        if levels:
            axes.set_xticks(range(len(levels)), [_short(level) for level in levels], rotation=30, ha="right")
        elif known.any() and _is_skewed(values[known]):
            axes.set_xscale("symlog", linthresh=max(float(np.median(np.abs(values[known]))), 1e-6))
        if (~known).any():
            left = axes.get_xlim()[0]
            axes.axvline(left, color="grey", linestyle="--", linewidth=0.8)
            axes.scatter(np.full((~known).sum(), left), shap[~known], s=4, alpha=0.5, color="grey")
        axes.set(xlabel=names[feature], ylabel="SHAP value (log-odds)" if feature == order[0] else "")
    return _png(figure)


def slice_plot(overall: SliceMetrics, slices: Sequence[SliceMetrics]) -> bytes:
    """Draw each slice's average precision and false positive rate with intervals; a line marks the whole.

    A slice with too few rows has no point.
    """
    figure, panels = _new_row(9, 0.36 * len(slices) + 1.3, 2)
    heights = range(len(slices))[::-1]
    measures: list[tuple[str, Callable[[SliceMetrics], Estimate | None]]] = [
        ("average precision", lambda part: part.average_precision),
        ("false positive rate", lambda part: part.false_positive_rate),
    ]
    for axes, (title, measure) in zip(panels, measures, strict=True):
        whole = measure(overall)
        if whole is not None:
            axes.axvline(whole.value, color="grey", linestyle=":", label="all rows")
        for height, part in zip(heights, slices, strict=True):
            if (estimate := measure(part)) is not None:
                axes.plot([estimate.lower, estimate.upper], [height, height], color="tab:blue")
                axes.plot(estimate.value, height, "o", color="tab:blue", markersize=5)
        axes.set(title=title, xlabel="95 % interval", ylim=(-0.6, len(slices) - 0.4))
        axes.set_yticks(
            list(heights), [part.name for part in slices] if axes is panels[0] else [""] * len(slices)
        )
    return _png(figure)


def metric_history(
    title: str, versions: Sequence[str], estimates: Sequence[Estimate | None], marked: Mapping[str, str]
) -> bytes:
    """Draw a metric of versions, oldest first, with intervals; `marked` names versions with an alias."""
    figure, axes = _new(max(4.5, 0.6 * len(versions) + 2.2), 3.2)
    for at, (version, estimate) in enumerate(zip(versions, estimates, strict=True)):
        if estimate is None:
            continue
        colour = "tab:green" if "champion" in marked.get(version, "") else "tab:blue"
        axes.plot([at, at], [estimate.lower, estimate.upper], color=colour)
        axes.plot(at, estimate.value, "o", color=colour)
    labels = [f"{version}\n{marked[version]}" if version in marked else version for version in versions]
    axes.set_xticks(range(len(versions)), labels)
    axes.set(title=title, xlabel="version", xlim=(-0.6, len(versions) - 0.4))
    axes.grid(axis="y", alpha=0.3)
    return _png(figure)


def _is_skewed(values: np.ndarray) -> bool:
    """Tell whether the largest values stand far from the middle ones; shares and flags never do."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.99])
    return bool(np.abs(values).max() > 1 and high - middle > 8 * max(middle - low, 1e-9))


def _short(text: str, length: int = 14) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _rank(values: np.ndarray) -> np.ndarray:
    """Return the share of values below each one, so that one outlier does not bleach the rest."""
    distinct = np.sort(values)
    return np.searchsorted(distinct, values, side="left") / max(len(values) - 1, 1)


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of one panel."""
    figure, [axes] = _new_row(width, height, 1)
    return figure, axes


def _new_row(width: float, height: float, panels: int) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels side by side that belongs to no window system and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, panels, panel + 1) for panel in range(panels)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
