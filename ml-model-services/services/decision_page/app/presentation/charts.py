"""Figures: what is computed for them is plain data first, the drawing comes last."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import plotly.graph_objects as go

from app.presentation.words import DASH, SEVERITY, instant, listed, milliseconds, percent, thresholds_in_order

# Green, amber and red of the same lightness; every use of them also says the decision in words.
COLOURS = ("#1a7f5a", "#c27803", "#c0362c")
OTHER = "#5b6b82"
LINE = "#3b5bdb"
GRID = "rgba(125, 135, 150, 0.25)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SCORE_BINS = 20
MOST_BUCKETS = 24


class Point(NamedTuple):
    """One answer of the service on a what-if curve."""

    at: float
    score: float | None
    decision: str


@dataclass(frozen=True)
class Bucket:
    """The decisions of one stretch of time."""

    begin: datetime
    count: int
    degraded: int

    @property
    def share(self) -> float:
        """The share of degraded decisions."""
        return self.degraded / self.count


@dataclass(frozen=True)
class Summary:
    """What a list of decisions comes to."""

    count: int
    by_decision: dict[str, int]
    mean_score: float | None
    p50_ms: float
    p95_ms: float
    degraded: int


def colour_of(decision: str) -> str:
    """Return the colour of a decision."""
    severity = SEVERITY.get(decision)
    return OTHER if severity is None else COLOURS[severity]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of `values` that at least `share` of them do not exceed.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5), percentile([7.0], 0.95)
    (2.0, 7.0)
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarize(decisions: Sequence[Mapping[str, Any]]) -> Summary | None:
    """Return what the decisions come to, nothing if there are none."""
    if not decisions:
        return None
    scores = [decision["score"] for decision in decisions if decision["score"] is not None]
    latencies = [decision["latency_ms"] for decision in decisions]
    counts = Counter(decision["decision"] for decision in decisions)
    return Summary(
        count=len(decisions),
        by_decision=dict(sorted(counts.items(), key=lambda item: (SEVERITY.get(item[0], 9), item[0]))),
        mean_score=sum(scores) / len(scores) if scores else None,
        p50_ms=percentile(latencies, 0.5),
        p95_ms=percentile(latencies, 0.95),
        degraded=sum(bool(decision["degraded"]) for decision in decisions),
    )


def score_range(decisions: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return between which values the scores are drawn: [0, 1], or wider where they are no probabilities."""
    scores = [decision["score"] for decision in decisions if decision["score"] is not None]
    return min([0.0, *scores]), max([1.0, *scores])


def score_histogram(
    decisions: Sequence[Mapping[str, Any]], low: float = 0.0, high: float = 1.0
) -> dict[str, list[int]]:
    """Return, per decision, how many scores fall into each of SCORE_BINS equal bins of [low, high]."""
    found: dict[str, list[int]] = {}
    for decision in decisions:
        if decision["score"] is not None:
            bins = found.setdefault(decision["decision"], [0] * SCORE_BINS)
            bins[min(SCORE_BINS - 1, int((decision["score"] - low) / (high - low) * SCORE_BINS))] += 1
    return dict(sorted(found.items(), key=lambda item: SEVERITY.get(item[0], 9)))


def over_time(decisions: Sequence[Mapping[str, Any]]) -> list[Bucket]:
    """Return the decisions by stretches of equal length, oldest first, without the empty ones."""
    times = [instant(decision["requested_at"]) for decision in decisions]
    if not times:
        return []
    first, span = min(times), max(times) - min(times)
    width = max(span / min(MOST_BUCKETS, len(times)), timedelta(milliseconds=1))
    buckets: dict[int, list[bool]] = {}
    for at, decision in zip(times, decisions, strict=True):
        buckets.setdefault(min(int((at - first) / width), MOST_BUCKETS - 1), []).append(decision["degraded"])
    return [Bucket(first + i * width, len(found), sum(found)) for i, found in sorted(buckets.items())]


def changes(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Return the neighbours on a curve between which the decision changes."""
    return [(a, b) for a, b in itertools.pairwise(points) if a.decision != b.decision]


# --- drawing --------------------------------------------------------------------------------------


def _layout(figure: go.Figure, height: int, **options: Any) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 52, "r": 16, "t": 12, "b": 44},
        font={"family": _FONT, "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        dragmode=False,
        hoverlabel={"font": {"family": _FONT}},
        **options,
    )
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, fixedrange=True)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, fixedrange=True, rangemode="tozero")
    return figure


def _threshold_lines(figure: go.Figure, thresholds: Mapping[str, float], *, vertical: bool = False) -> None:
    for name, limit in thresholds_in_order(thresholds):
        line = {"line_dash": "dot", "line_color": colour_of(name), "line_width": 1.5, "annotation_text": name}
        if vertical:
            figure.add_vline(limit * 100, annotation_position="top", **line)
        else:
            figure.add_hline(limit * 100, annotation_position="right", **line)


def gauge(score: float, thresholds: Mapping[str, float], decision: str) -> go.Figure:
    """Draw a score between the thresholds."""
    limits = [(name, limit * 100) for name, limit in thresholds_in_order(thresholds)]
    edges = [0.0, *(limit for _, limit in limits), 100.0]
    colours = [COLOURS[0], *(colour_of(name) for name, _ in limits)]
    figure = go.Figure(
        go.Indicator(
            mode="gauge+number",
            value=score * 100,
            number={"suffix": " %", "valueformat": ".1f", "font": {"size": 38}},
            domain={"x": [0.06, 0.94], "y": [0, 1]},
            gauge={
                "axis": {
                    "range": [0, 100],
                    "tickvals": edges,
                    "ticktext": [f"{edge:.0f}" for edge in edges],
                    "tickfont": {"size": 12},
                },
                "bar": {"color": colour_of(decision), "thickness": 0.42},
                "borderwidth": 0,
                "steps": [
                    {"range": [low, high], "color": _faint(colour)}
                    for low, high, colour in zip(edges, edges[1:], colours, strict=False)
                ],
                "threshold": {
                    "line": {"color": colours[-1], "width": 3},
                    "thickness": 0.9,
                    "value": edges[-2],
                },
            },
        )
    )
    figure = _layout(figure, 210)
    return figure.update_layout(margin={"l": 24, "r": 24, "t": 26, "b": 8})


def gauge_of(reply: Mapping[str, Any], thresholds: Mapping[str, float]) -> go.Figure | None:
    """Draw the score of a reply; nothing if rules alone decided."""
    score = reply["score"]
    return None if score is None else gauge(score, thresholds, reply["decision"])


def _faint(colour: str, opacity: float = 0.22) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def curve(
    points: Sequence[Point],
    thresholds: Mapping[str, float],
    *,
    axis: str,
    now: Point | None = None,
    hours: bool = False,
) -> go.Figure:
    """Draw score over one input; every point has the colour of its decision."""
    scored = [point for point in points if point.score is not None]
    figure = go.Figure(
        go.Scatter(
            x=[point.at for point in scored],
            y=[(point.score or 0.0) * 100 for point in scored],
            customdata=[point.decision for point in scored],
            mode="lines+markers",
            cliponaxis=False,
            line={"color": OTHER, "width": 1.5},
            marker={"color": [colour_of(point.decision) for point in scored], "size": 7},
            hovertemplate=axis + " %{x}<br>score %{y:.1f} %<br>%{customdata}<extra></extra>",
        )
    )
    _threshold_lines(figure, thresholds)
    if now is not None and now.score is not None:
        figure.add_trace(
            go.Scatter(
                x=[now.at],
                y=[now.score * 100],
                mode="markers",
                cliponaxis=False,
                marker={
                    "size": 16,
                    "symbol": "circle-open",
                    "color": LINE,
                    "line": {"width": 3},
                },
                hovertemplate="as entered<br>score %{y:.1f} %<extra></extra>",
            )
        )
    figure = _layout(figure, 280)
    figure.update_layout(margin={"r": 60})  # where the thresholds are named
    figure.update_xaxes(title=axis)
    if hours:
        figure.update_xaxes(range=[-0.5, 23.5], dtick=3)
    highest = max([(point.score or 0.0) for point in scored] + list(thresholds.values()) + [0.01])
    return figure.update_yaxes(title="score, %", range=[0, 108 * highest])


def score_distribution(decisions: Sequence[Mapping[str, Any]], thresholds: Mapping[str, float]) -> go.Figure:
    """Draw how the scores are spread, by decision."""
    low, high = score_range(decisions)
    width = (high - low) / SCORE_BINS
    figure = go.Figure(
        [
            go.Bar(
                x=[(low + (i + 0.5) * width) * 100 for i in range(SCORE_BINS)],
                y=counts,
                name=decision,
                marker={"color": colour_of(decision)},
                hovertemplate=decision + ": %{y}<br>score about %{x:.0f} %<extra></extra>",
            )
            for decision, counts in score_histogram(decisions, low, high).items()
        ]
    )
    _threshold_lines(figure, thresholds, vertical=True)
    figure = _layout(figure, 250, barmode="stack", bargap=0.08)
    figure.update_layout(margin={"t": 30})  # where the thresholds are named
    figure.update_xaxes(title="score, %", range=[low * 100, high * 100])
    return figure.update_yaxes(title="decisions")


def decision_counts(summary: Summary) -> go.Figure:
    """Draw how often each decision was taken."""
    names = list(summary.by_decision)
    counts = list(summary.by_decision.values())
    figure = go.Figure(
        go.Bar(
            x=counts,
            y=names,
            orientation="h",
            width=0.55,
            marker={"color": [colour_of(name) for name in names]},
            text=[f"{count} ({percent(count / summary.count, 0)})" for count in counts],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x}<extra></extra>",
        )
    )
    figure = _layout(figure, 250)
    figure.update_xaxes(title="decisions", range=[0, 1.3 * max(counts)])
    return figure.update_yaxes(automargin=True, autorange="reversed")


def latencies(decisions: Sequence[Mapping[str, Any]], summary: Summary) -> go.Figure:
    """Draw how long the decisions took, over time."""
    figure = go.Figure(
        go.Scatter(
            x=[instant(decision["requested_at"]) for decision in decisions],
            y=[decision["latency_ms"] for decision in decisions],
            mode="markers",
            marker={"size": 6, "color": LINE, "opacity": 0.55},
            hovertemplate="%{x|%H:%M:%S}<br>%{y:.1f} ms<extra></extra>",
        )
    )
    for name, value, place in (
        ("half are faster", summary.p50_ms, "top left"),
        ("95 % are faster", summary.p95_ms, "top right"),
    ):
        figure.add_hline(
            value,
            line_dash="dot",
            line_color=OTHER,
            annotation_text=f"{name}: {milliseconds(value)}",
            annotation_position=place,
        )
    figure = _layout(figure, 250)
    figure.update_xaxes(title="time, UTC")
    return figure.update_yaxes(title="ms")


def degraded_share(decisions: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the share of decisions that had to do without current features, over time."""
    buckets = over_time(decisions)
    figure = go.Figure(
        go.Scatter(
            x=[bucket.begin for bucket in buckets],
            y=[bucket.share * 100 for bucket in buckets],
            customdata=[f"{bucket.degraded} of {bucket.count}" for bucket in buckets],
            mode="lines+markers",
            line={"color": COLOURS[2], "width": 2},
            fill="tozeroy",
            fillcolor=_faint(COLOURS[2]),
            hovertemplate="%{x|%H:%M:%S}<br>%{customdata}<extra></extra>",
        )
    )
    figure = _layout(figure, 250)
    figure.update_xaxes(title="time, UTC")
    return figure.update_yaxes(title="degraded, %", range=[-2, 102])


# --- in words: what a figure shows, for whoever does not see it -----------------------------------


def curve_words(points: Sequence[Point], input_name: str, write: Any) -> str:
    """Say where on a curve the decision changes."""
    if not points:
        return ""
    found = changes(points)
    if not found:
        return f"The decision is “{points[0].decision}” whatever the {input_name}."
    parts = [
        f"from “{a.decision}” to “{b.decision}” between {write(a.at)} and {write(b.at)}" for a, b in found[:4]
    ]
    rest = f", and {len(found) - 4} more times" if len(found) > 4 else ""
    return f"With the {input_name} the decision goes {'; '.join(parts)}{rest}."


def summary_words(summary: Summary | None) -> str:
    """Say what a list of decisions comes to."""
    if summary is None:
        return "No decision is recorded yet."
    kinds = listed([f"{count} × {name}" for name, count in summary.by_decision.items()])
    if summary.count == 1:
        return f"1 decision: {kinds}."
    mean = DASH if summary.mean_score is None else percent(summary.mean_score)
    degraded = f"{summary.degraded or 'None'} {'was' if summary.degraded < 2 else 'were'} degraded."
    return (
        f"{summary.count} decisions: {kinds}. Mean score {mean}. Half of them took less than "
        f"{milliseconds(summary.p50_ms)}, 95 % less than {milliseconds(summary.p95_ms)}. {degraded}"
    )
