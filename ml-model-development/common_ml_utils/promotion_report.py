"""The gate's page: verdict and reasons on top, the comparison drawn, guards, slices, both candidates."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common_ml_utils.pages import Block, Facts, Note, Page, Plots, Section, Table, Text
from common_ml_utils.promotion_evaluation import SLICE
from common_ml_utils.reports import write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS: dict[str, Literal["good", "warning", "bad"]] = {
    "promote": "good",
    "needs approval": "warning",
    "refuse": "bad",
}
OUTCOMES = {"pass": "pass", "needs approval": "asks", "refuse": "REFUSES"}
ORDER = {"refuse": 0, "needs approval": 1, "pass": 2}
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


def comparison_plot(report: Mapping[str, Any]) -> bytes:
    """Draw the differences with their intervals beside zero and the margins, the whole holdout on top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole, gate = report["comparison"], report["gate"]
    outcomes = {finding["guard"]: finding["outcome"] for finding in report["findings"]}
    rows = [("all rows", whole, outcomes["comparison"], gate["margin"])]
    rows += [
        (each["name"], each, outcomes.get(SLICE + each["name"], "pass"), gate["slice_margin"])
        for each in report["slices"]
        if each["lower"] is not None and each["support"] >= gate["slice_support"]
    ]
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for height, (_, each, outcome, margin) in enumerate(reversed(rows)):
        _interval(axes, height, each, COLOURS[outcome], margin)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
    axes.set(
        xlabel=f"challenger - champion, {gate['metric']}: estimate, 95 % interval; the tick is the margin",
        ylim=(-0.6, len(rows) - 0.4),
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _interval(axes: Axes, height: int, each: Mapping[str, Any], colour: str, margin: float) -> None:
    axes.plot([each["lower"], each["upper"]], [height, height], color=colour, linewidth=2.5)
    axes.plot(each["difference"], height, "o", color=colour, markersize=6)
    axes.plot([-margin, -margin], [height - 0.32, height + 0.32], color="grey", linestyle="--")


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
    return Section(
        f"Comparison: {report['gate']['metric']}",
        [Plots({"comparison": comparison_plot(report)}), Facts(figures), *notes],
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
