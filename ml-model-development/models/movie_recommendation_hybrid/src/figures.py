"""Plots of recommenders as PNG bytes: measures with their intervals, and what was tried on validation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from src.measures import Interval

OURS, OTHERS, PUBLISHED = "#2f6db3", "#8aa4bf", "#d0d0d0"


def bars_with_intervals(
    title: str, values: Mapping[str, Interval], published: Mapping[str, float] | None = None
) -> bytes:
    """Draw one bar a recommender, the first one as ours, with 95 % intervals; published figures are grey."""
    published = published or {}
    names = [*values, *published]
    figure = Figure(figsize=(8, 0.36 * len(names) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (name, interval) in enumerate(values.items()):
        below, above = max(interval.value - interval.lower, 0), max(interval.upper - interval.value, 0)
        colour = OURS if place == 0 else OTHERS
        axes.barh(place, interval.value, xerr=[[below], [above]], color=colour, capsize=3, label=name)
    for place, value in enumerate(published.values(), start=len(values)):
        axes.barh(place, value, color=PUBLISHED)
    ends = [*(max(each.value, each.upper) for each in values.values()), *published.values()]
    shown = [*(each.value for each in values.values()), *published.values()]
    for place, (end, value) in enumerate(zip(ends, shown, strict=True)):
        axes.annotate(f"{value:.3f}", (end, place), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, max([*ends, 1e-3]) * 1.1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(title=title)
    return png(figure)


def slice_bars(title: str, figures: Sequence[Mapping[str, float | int | str]], measure: str) -> bytes:
    """Draw a measure of each slice with its interval and the number of rows it rests on."""
    chosen = [each for each in figures if each["measure"] == measure]
    return bars_with_intervals(
        title,
        {
            f"{each['slice']} (n={each['rows']:,})": Interval(
                float(each["value"]), float(each["lower"]), float(each["upper"])
            )
            for each in chosen
        },
    )


def png(figure: Figure) -> bytes:
    """Return the figure as PNG, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
