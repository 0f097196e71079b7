"""The gate's page: verdict and reasons on top, the comparison drawn, guards, slices, both candidates."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from common_ml_utils.pages import Block, Facts, Note, Page, Section, Table, Text
from common_ml_utils.promotion.evaluation import SLICE
from common_ml_utils.reports import write_page

KINDS: dict[str, Literal["good", "warning", "bad"]] = {
    "promote": "good",
    "needs approval": "warning",
    "refuse": "bad",
}
OUTCOMES = {"pass": "pass", "needs approval": "asks", "refuse": "REFUSES"}
ORDER = {"refuse": 0, "needs approval": 1, "pass": 2}
WIDTH, LEFT, ROW = 860, 250, 26  # CSS pixels
COLOURS = {"pass": "#3d8b5f", "needs approval": "#c98a1b", "refuse": "#c0392b"}


def write_gate_page(path: Path, report: Mapping[str, Any]) -> None:
    """Write the page of a gate's report, as `gate.json` holds it."""
    write_page(path, gate_page(report))


def gate_page(report: Mapping[str, Any]) -> Page:
    """Return the page of a gate's report."""
    version = report["challenger"]["version"]
    summary: list[Block] = [
        Note(KINDS[report["verdict"]], [f"Verdict: {report['verdict']}", *report["reasons"]])
    ]
    if report["verdict"] == "needs approval":
        command = f"promotion approve --model {report['model_name']} --by NAME --reason TEXT"
        summary.append(Text(f"A person decides: python -m common_ml_utils.{command}"))
    sections = [_comparison(report), _guards(report), _slices(report), _candidates(report), _metrics(report)]
    return Page(
        title=f"Gate: {report['model_name']} version {version}",
        subtitle=_standing(report),
        summary=summary,
        sections=[section for section in sections if section is not None],
        footer=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, ledger entry {report['ledger_hash']}",
    )


@dataclass(frozen=True)
class Interval:
    """A difference with its interval, beside zero and the margin it may be below zero."""

    name: str
    difference: float
    lower: float
    upper: float
    margin: float
    outcome: str


@dataclass(frozen=True)
class Intervals:
    """Differences drawn one below the other, on one scale."""

    rows: Sequence[Interval]
    unit: str

    def html(self) -> str:
        """Return a drawing."""
        ends = [0.0, *(end for row in self.rows for end in (row.lower, row.upper, -row.margin))]
        low, high = min(ends), max(ends)
        room = 0.06 * (high - low)
        low, high = low - room, high + room

        def x(value: float) -> float:
            return round(LEFT + (WIDTH - LEFT) * (value - low) / (high - low), 1)

        bottom = ROW * len(self.rows) + 6
        parts = [_line(x(0), 4, x(0), bottom, "#1f2933")]
        parts += [
            _text(x(value), bottom + 16, f"{value:+.3f}" if value else "0", "middle")
            for value in (low + room, 0.0, high - room)
        ]
        for i, row in enumerate(self.rows):
            y = ROW * i + ROW / 2 + 4
            colour = COLOURS[row.outcome]
            parts += [
                _text(LEFT - 12, y + 4, row.name, "end"),
                _line(x(-row.margin), y - 9, x(-row.margin), y + 9, "#7b8794", 'stroke-dasharray="3 3"'),
                _line(x(row.lower), y, x(row.upper), y, colour, 'stroke-width="3"'),
                f'<circle cx="{x(row.difference)}" cy="{y}" r="4.5" fill="{colour}"/>',
            ]
        label = html.escape(f"challenger - champion, {self.unit}", quote=True)
        return (
            f'<svg viewBox="0 0 {WIDTH} {bottom + 24}" width="{WIDTH}" style="max-width:100%" role="img" '
            f'aria-label="{label}" font-family="inherit" font-size="12.5">{"".join(parts)}</svg>'
        )

    def markdown(self, plots: str) -> str:
        """Return a table."""
        rows = [[row.name, row.difference, row.lower, row.upper, -row.margin] for row in self.rows]
        return Table(["", "difference", "from", "to", "margin"], rows).markdown(plots)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:  # noqa: PLR0917
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" {more}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#1f2933">{html.escape(text)}</text>'


def intervals_of(report: Mapping[str, Any]) -> Intervals:
    """Return the whole holdout's interval and those of the judged slices."""
    gate = report["gate"]
    outcomes = {finding["guard"]: finding["outcome"] for finding in report["findings"]}
    drawn = [("all rows", report["comparison"], gate["margin"], outcomes["comparison"])]
    drawn += [
        (each["name"], each, gate["slice_margin"], outcomes[SLICE + each["name"]])
        for each in report["slices"]
        if each["lower"] is not None and each["support"] >= gate["slice_support"]
    ]
    rows = [
        Interval(name, each["difference"], each["lower"], each["upper"], margin, outcome)
        for name, each, margin, outcome in drawn
    ]
    return Intervals(rows, gate["metric"])


def _standing(report: Mapping[str, Any]) -> str:
    after = report["champion_after"]
    production = "nothing is in production" if after is None else f"version {after} is in production"
    return f"{report['gate']['metric']} on the challenger's holdout; after this verdict {production}"


def _comparison(report: Mapping[str, Any]) -> Section | None:
    whole = report["comparison"]
    notes = [Text(note) for note in report["notes"]]
    if whole is None:
        return Section("Comparison", notes) if notes else None
    figures = {
        "champion": whole["champion"],
        "challenger": whole["challenger"],
        "difference": f"{whole['difference']:+.4f}",
        "95 % interval": f"{whole['lower']:+.4f} to {whole['upper']:+.4f}",
        "P(better)": f"{whole['probability_better']:.1%}",
        f"P(not worse by more than {whole['margin']:g})": f"{whole['probability_not_worse']:.1%}",
        "asked for": f"{report['gate']['confidence']:.1%}",
        "resamples": whole["resamples"],
    }
    legend = (
        "Challenger - champion: estimate and central 95 % of the resamples; the line is zero, the dashed "
        "tick the margin."
    )
    return Section(
        f"Comparison: {report['gate']['metric']}",
        [intervals_of(report), Text(legend, caption=True), Facts(figures), *notes],
    )


def _guards(report: Mapping[str, Any]) -> Section:
    found = [each for each in report["findings"] if not each["guard"].startswith(SLICE)]
    rows = [
        [
            each["guard"],
            OUTCOMES[each["outcome"]],
            _figure(each, "value"),
            _figure(each, "limit"),
            each["message"],
        ]
        for each in sorted(found, key=lambda each: ORDER[each["outcome"]])
    ]
    return Section("Guards", [Table(["guard", "outcome", "value", "limit", "what was seen"], rows)])


def _slices(report: Mapping[str, Any]) -> Section | None:
    if not report["slices"]:
        return None
    outcomes = {each["guard"]: each for each in report["findings"]}
    rows = []
    for each in report["slices"]:
        finding = outcomes[SLICE + each["name"]]
        judged = not finding["message"].startswith("not judged")
        interval = None if each["lower"] is None else f"{each['lower']:+.4f} to {each['upper']:+.4f}"
        difference = None if each["difference"] is None else f"{each['difference']:+.4f}"
        figures = [each["rows"], each["support"], each["champion"], each["challenger"], difference, interval]
        rows.append([each["name"], OUTCOMES[finding["outcome"]] if judged else "not judged", *figures])
    columns = [
        "slice",
        "outcome",
        "rows",
        "support",
        "champion",
        "challenger",
        "difference",
        "95 % interval",
    ]
    limit = (
        f"Support: rows of the rarer class (viewers of a recommender); judged from "
        f"{report['gate']['slice_support']} on."
    )
    return Section("Slices", [Table(columns, rows), Text(limit, caption=True)])


def _candidates(report: Mapping[str, Any]) -> Section:
    names = [name for name in ("challenger", "champion") if report[name] is not None]
    lines = [_facts_of(report[name]) for name in names]
    rows = [[label, *(line[label] for line in lines)] for label in lines[0]]
    return Section("Candidates", [Table(["", *names], rows)])


def _facts_of(candidate: Mapping[str, Any]) -> dict[str, Any]:
    training = candidate["training"]
    return {
        "version": str(candidate["version"]),
        "bundle": candidate["bundle_sha256"][:16],
        "data version": str(candidate["data_version"])[:16],
        "code": str(candidate["git_commit"])[:16],
        "training": f"{training['start'][:10]} to {training['end'][:10]}",
        "rows, positives": f"{training['rows']:,}, {training['positives']:,}",
        "holdout": f"{training['holdout_start'][:10]} to {training['holdout_end'][:10]}",
    }


def _metrics(report: Mapping[str, Any]) -> Section | None:
    mine = report["challenger"]["metrics"]
    if mine is None:
        return None
    theirs = (report["champion"] or {}).get("metrics") or {}
    rows = [[name, value, theirs.get(name)] for name, value in mine.items()]
    return Section("Metrics on the holdout", [Table(["metric", "challenger", "champion"], rows)])


def _figure(finding: Mapping[str, Any], name: str) -> str | None:
    value = finding[name]
    return None if value is None else f"{value:,.4g} {finding['unit']}".rstrip()
