"""The look of the notebooks' plots: one style, and the same colour for the same thing everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import PercentFormatter

ALL, FRAUD, GENUINE, UNKNOWN = "#33658a", "#d1495b", "#6a994e", "#9a9a9a"
# A second and third kind of the same thing.
NIGHT = "#e0a030"
STEPS = ("#e6e6e6", "#c3d5e3", "#8fb0c9", "#5d8bb0", "#33658a")  # from none to many
WINDOWS = {1: "#e0a030", 7: "#6a994e", 30: "#33658a"}
STYLE: dict[str, Any] = {
    "figure.figsize": (9.0, 3.8),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlepad": 10,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "font.size": 9.5,
}


def panels(titles: Sequence[str], *, height: float = 3.8) -> list[Axes]:
    """Return one panel a title, side by side, in the notebooks' style."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    _, axes = plt.subplots(1, len(titles), figsize=(9.0, height), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    return list(axes[0])


def panel(title: str, *, height: float = 3.8) -> Axes:
    """Return one panel."""
    [axis] = panels([title], height=height)
    return axis


def name_axes(axis: Axes, x: str, y: str) -> None:
    """Name both axes, with their units."""
    axis.set_xlabel(x)
    axis.set_ylabel(y)


def percent(*axes: Axis) -> None:
    """Show shares from 0 to 1 in per cent."""
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1.0))


def days(axis: Axes) -> None:
    """Show the x axis as days, as few as fit."""
    locator = mdates.AutoDateLocator(maxticks=8)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))


def not_yet_known(axis: Axes, start: pd.Timestamp, end: pd.Timestamp) -> None:
    """Shade the days whose labels are not known yet."""
    axis.axvspan(start, end, color=UNKNOWN, alpha=0.2, linewidth=0, label="labels not known yet")
