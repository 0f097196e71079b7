"""Plots of the churn project as PNG bytes: reliability, value against threshold, what-if."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from common_ml_utils.evaluation_utils import calibration_table, expected_calibration_error
from src.value import ChosenThresholds, ValueCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#33658a", "#d1495b", "#6a994e", "#e0a030")
ACTION_COLOURS = {"contact": "#33658a", "offer": "#d1495b"}


def reliability(labels: np.ndarray, series: Mapping[str, np.ndarray], bins: int = 10) -> bytes:
    """Draw the observed rate of equal-count bins with its 95 % Wilson interval against the mean score."""
    figure, axes = _new(6.2, 5.2)
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey", label="calibrated")
    for (name, scores), colour in zip(series.items(), COLOURS, strict=False):
        table = calibration_table(labels, scores, bins)
        observed, rows = table["observed"].to_numpy(), table["rows"].to_numpy()
        low, high = wilson(observed, rows)
        error = expected_calibration_error(labels, scores, bins)
        axes.errorbar(
            table["predicted"],
            observed,
            yerr=[observed - low, high - observed],
            fmt="o-",
            color=colour,
            capsize=3,
            markersize=4,
            alpha=0.85,
            label=f"{name}: calibration error {error:.3f}",
        )
    axes.set(xlabel="mean score of the bin", ylabel="share that left", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"Calibration of unseen scores, {bins} bins of equally many")
    axes.legend()
    return _png(figure)


def value_curve(curve: ValueCurve, chosen: ChosenThresholds) -> bytes:
    """Draw the value of acting on every score at or above a threshold, beside the usual policies."""
    figure, axes = _new(8.2, 5.2)
    for action, line in curve.by_action.items():
        colour, threshold = ACTION_COLOURS[action], chosen.by_action[action]
        axes.plot(curve.thresholds, line, color=colour, label=f"{action} at or above the threshold")
        axes.axvspan(threshold.lower, threshold.upper, color=colour, alpha=0.12)
        axes.axvline(threshold.threshold, color=colour, linewidth=0.9, linestyle="--")
        everybody, half = curve.policies[f"{action} everybody"], curve.policies[f"{action} at 0.5"]
        axes.plot(
            0, everybody, "s", color=colour, clip_on=False, label=f"{action} everybody: {everybody:,.0f}"
        )
        axes.plot(0.5, half, "o", color=colour, label=f"{action} at 0.5: {half:,.0f}")
    best = curve.policies["the two thresholds"]
    axes.axhline(best, color="#6a994e", label=f"both thresholds: {best:,.0f}")
    axes.axhline(0, color="grey", linestyle=":", label="nobody: 0")
    low = min(0.0, *(float(line.min()) for line in curve.by_action.values()))
    axes.set(xlabel="threshold on the score", ylabel="USD per 1,000 subscribers, beside doing nothing")
    axes.set(xlim=(0, 1), ylim=(low * 1.1 - best * 0.05, best * 1.25))
    axes.set_title("What acting is worth (dashed: chosen thresholds, shaded: 95 % of them)")
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.52, 0.02))
    return _png(figure)


def what_if(
    charges: np.ndarray,
    scores: Mapping[str, np.ndarray],
    now: tuple[float, float],
    changed: tuple[float, float] | None,
    thresholds: Mapping[str, float],
    *,
    title: str,
) -> bytes:
    """Draw the score against monthly charges, one line a contract, with the subscriber now and changed."""
    figure, axes = _new(8.2, 4.8)
    for (contract, line), colour in zip(scores.items(), COLOURS, strict=False):
        axes.plot(charges, line, color=colour, label=contract)
    for (name, threshold), style in zip(thresholds.items(), (":", "--"), strict=False):
        axes.axhline(
            threshold, color="grey", linestyle=style, linewidth=0.9, label=f"{name} at {threshold:.2f}"
        )
    axes.plot(*now, "o", color="black", markersize=8, label=f"now: {now[1]:.3f}")
    if changed is not None:
        axes.plot(*changed, "*", color="black", markersize=13, label=f"changed: {changed[1]:.3f}")
        axes.annotate("", xy=changed, xytext=now, arrowprops={"arrowstyle": "->", "color": "black"})
    axes.set(xlabel="monthly charges, USD", ylabel="score: P(leaves)", title=title, ylim=(0, 1))
    axes.legend(fontsize=8, ncols=2)
    return _png(figure)


def wilson(share: np.ndarray, rows: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure that belongs to no window system and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
