"""What a check leaves: a page with history, JSON, and metrics in Prometheus' text form."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from .engine import Result
from .store import Fingerprints, Run, as_json

SHOWN_DAYS = 90
SHOWN_EXPECTATIONS = 25
COLOURS = {"passed": "#2e7d32", "warning": "#f9a825", "critical": "#c62828"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } img { max-width: 100% }
td, th { border-bottom: 1px solid #ddd; padding: .3rem .5rem; text-align: left; vertical-align: top }
.passed { color: #2e7d32 } .warning { color: #b26a00 } .critical { color: #c62828; font-weight: 600 }
code, pre { font-size: 13px } pre { overflow-x: auto; margin: 0 }
"""


def state(result: Result) -> str:
    """Return `passed`, or how bad it is that the expectation did not pass."""
    return "passed" if result.status == "passed" else result.expectation.severity


def lines(run: Run) -> Iterator[str]:
    """Yield what a person at a terminal needs: the verdict, and each failure with what it means."""
    days = f"{run.window.first} to {run.window.last}" if run.window else "no day"
    for result in run.results:
        if result.status != "passed":
            kind = "CRITICAL" if result.is_critical_failure else "warning"
            name = f"{result.suite.name}.{result.expectation.name}"
            yield f"{kind} {name}: {result.status}: {result.observed}. {result.expectation.why}"
    if run.reason:
        yield f"CRITICAL the check could not be made: {run.reason}"
    yield (
        f"{run.level}: {run.status}: {len(run.results)} expectations on {days},"
        f" {run.critical_failures} critical failures, {run.warnings} warnings, {run.seconds:.1f} s"
    )


def document(run: Run) -> dict[str, Any]:
    """Return a run as JSON can hold it."""
    return {
        "command": f"python -m data_quality.check --level {run.level}",
        "date": run.started_at.isoformat(timespec="seconds"),
        "level": run.level,
        "status": run.status,
        "reason": run.reason,
        "first_day": str(run.window.first) if run.window else None,
        "last_day": str(run.window.last) if run.window else None,
        "seconds": round(run.seconds, 3),
        "critical_failures": run.critical_failures,
        "warnings": run.warnings,
        "results": [
            {
                "suite": result.suite.name,
                "owner": result.suite.owner,
                "expectation": result.expectation.name,
                "severity": result.expectation.severity,
                "status": result.status,
                "observed": result.observed,
                "broken_rows": result.broken,
                "why": result.expectation.why,
                "sample": as_json(result.sample),
            }
            for result in run.results
        ],
    }


def write(
    folder: Path, run: Run, history: Sequence[Mapping[str, Any]], volumes: Mapping[str, Fingerprints]
) -> Path:
    """Write `<level>.json` and `<level>.html` and return the page's path; no reader sees half of one."""
    _replace(folder / f"{run.level}.json", json.dumps(document(run), indent=1) + "\n")
    page = folder / f"{run.level}.html"
    _replace(page, html_page(run, history, volumes))
    return page


def write_metrics(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the newest results of every level for Prometheus' textfile collector."""
    registry = CollectorRegistry()
    labels = ["level", "suite", "expectation", "severity"]
    name = "feature_store_quality"
    success = Gauge(f"{name}_expectation_success", "1 where it passed.", labels, registry=registry)
    broken = Gauge(f"{name}_broken_rows", "Rows that broke an expectation.", labels, registry=registry)
    level = ["level"]
    passed = Gauge(f"{name}_passed", "1 where nothing critical failed.", level, registry=registry)
    seconds = Gauge(f"{name}_run_seconds", "How long the newest check took.", level, registry=registry)
    time = Gauge(f"{name}_run_timestamp_seconds", "When the newest check began.", level, registry=registry)
    for row in results:
        passed.labels(row["level"]).set(row["run_status"] == "passed")
        seconds.labels(row["level"]).set(row["seconds"])
        time.labels(row["level"]).set(row["started_at"].timestamp())
        if row["suite"] is None:
            continue
        values = [row[label] for label in labels]
        success.labels(*values).set(row["status"] == "passed")
        if row["broken_rows"] is not None:
            broken.labels(*values).set(row["broken_rows"])
    _replace(path, generate_latest(registry).decode())


def html_page(run: Run, history: Sequence[Mapping[str, Any]], volumes: Mapping[str, Fingerprints]) -> str:
    """Return the page of a run: verdict, history, rows a day, and every expectation, the worst first."""
    days = f"{run.window.first} to {run.window.last}" if run.window else "no day"
    order = {"critical": 0, "warning": 1, "passed": 2}
    rows = "".join(_row(result) for result in sorted(run.results, key=lambda r: order[state(r)]))
    colour = "critical" if run.critical_failures else "warning" if run.warnings else "passed"
    reason = f"<p class=critical>{_text(run.reason)}</p>" if run.reason else ""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Quality: {run.level}</title><style>{STYLE}</style>
<h1>Quality of the {run.level} level: <span class={colour}>{run.status}</span></h1>
<p>{_text(days)} (UTC), checked {run.started_at:%Y-%m-%d %H:%M:%S} UTC in {run.seconds:.1f} s:
{len(run.results)} expectations, {run.critical_failures} critical failures, {run.warnings} warnings.</p>
{reason}
<h2>History</h2><img alt="Failures of the last runs" src="{_picture(history_figure(history))}">
{_volumes(volumes)}
<h2>Expectations</h2>
<table><tr><th>Expectation</th><th>State</th><th>Observed</th><th>What a failure means</th><th>Owner</th></tr>
{rows}</table></html>
"""


def _row(result: Result) -> str:
    sample = "".join(f"\n{json.dumps(as_json(row))}" for row in result.sample)
    shown = f"<pre>{_text(sample.strip())}</pre>" if sample else ""
    word = result.status if result.status == "passed" else f"{result.status} ({result.expectation.severity})"
    return (
        f"<tr><td><code>{_text(result.suite.name)}.{_text(result.expectation.name)}</code></td>"
        f"<td class={state(result)}>{word}</td><td>{_text(result.observed)}{shown}</td>"
        f"<td>{_text(result.expectation.why)}</td><td>{_text(result.suite.owner)}</td></tr>"
    )


def history_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw failures a run, and below which expectations did not pass when (runs from old to new)."""
    times: dict[str, int] = {}
    for run in history:
        for name in run["not_passed"]:
            times[name] = times.get(name, 0) + 1
    names = sorted(times, key=lambda name: (-times[name], name))[:SHOWN_EXPECTATIONS]
    figure = Figure(figsize=(11, 2.6 + 0.25 * len(names)), layout="constrained")
    runs = range(len(history))
    above, below = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [2, 0.3 + 0.25 * len(names)]}
    )
    critical = [run["critical_failures"] for run in history]
    warned = [run["warnings"] for run in history]
    above.bar(runs, critical, color=COLOURS["critical"], label="critical")
    above.bar(runs, warned, bottom=critical, color=COLOURS["warning"], label="warnings")
    highest = max([1, *(a + b for a, b in zip(critical, warned, strict=True))])
    above.set(ylabel="not passed", ylim=(0, highest))
    above.legend(fontsize="small", loc="upper left")
    for place, name in enumerate(names):
        hit = [index for index, run in enumerate(history) if name in run["not_passed"]]
        below.scatter(hit, [place] * len(hit), marker="s", s=25, color=COLOURS["critical"])
    below.set(yticks=range(len(names)), yticklabels=names, ylim=(-0.7, max(len(names), 1) - 0.3))
    below.tick_params(labelsize="small")
    below.invert_yaxis()
    step = max(1, len(history) // 8)
    below.set_xticks(
        list(runs)[::step], [run["started_at"].strftime("%m-%d %H:%M") for run in history][::step]
    )
    return figure


def _volumes(volumes: Mapping[str, Fingerprints]) -> str:
    """Return the plot of rows a day: a fingerprint begins with the number of rows."""
    figure = Figure(figsize=(11, 3), layout="constrained")
    axes = figure.subplots()
    for name, by_day in volumes.items():
        days: list[date] = sorted(by_day)[-SHOWN_DAYS:]
        if days:
            axes.plot(
                np.array(days, dtype="datetime64[D]"),
                [int(by_day[day].split(":")[0]) for day in days],
                marker=".",
                label=name,
            )
    if not axes.lines:
        return ""
    axes.set(ylabel="rows a UTC day", ylim=(0, None))
    axes.legend(fontsize="small")
    return f'<h2>Rows</h2><img alt="Rows a day" src="{_picture(figure)}">'


def _picture(figure: Figure) -> str:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=90)
    return f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"


def _text(value: object) -> str:
    return html.escape(str(value))


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
