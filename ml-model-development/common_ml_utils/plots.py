"""Plots of a trained model as PNG bytes: confusion, precision-recall, calibration and SHAP summary."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from sklearn.metrics import average_precision_score, precision_recall_curve

from common_ml_utils.evaluation_utils import calibration_table, confusion_at
from common_ml_utils.preprocessing import Preprocessing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHAP_FEATURES = 20
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


def _rank(values: np.ndarray) -> np.ndarray:
    """Return the share of values below each one, so that one outlier does not bleach the rest."""
    distinct = np.sort(values)
    return np.searchsorted(distinct, values, side="left") / max(len(values) - 1, 1)


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure that belongs to no window system and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
