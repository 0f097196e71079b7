"""The drift report: JSON for machines, one self-contained HTML page with plots for people."""

from __future__ import annotations

import base64
import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from advanced_monitoring_scripts.champion_bundle import SCORE, ChampionBundle
from advanced_monitoring_scripts.distribution_drift import (
    UNKNOWN,
    CategoricalReference,
    NumericReference,
    Reference,
)
from advanced_monitoring_scripts.settings import DriftThresholds
from advanced_monitoring_scripts.verdicts import ConceptFinding, Finding, Verdict

_TEMPLATES = Path(__file__).parent / "templates"
_PANELS = 9
_REFERENCE_COLOUR, _CURRENT_COLOUR = "#9aa5b1", "#2f6f9f"
_COLOURS = {
    Verdict.OK: "#3d8b5f",
    Verdict.WARN: "#d08c1d",
    Verdict.ALERT: "#c0392b",
    Verdict.NOT_JUDGED: "#9aa5b1",
}


@dataclass(frozen=True)
class DriftReport:
    """Everything a check found."""

    verdict: Verdict
    bundle: ChampionBundle
    source: str
    day: date
    first_day: date
    number_of_days: int
    rows: int
    left_out: dict[str, int]
    as_of: datetime
    findings: Sequence[Finding]
    concept: ConceptFinding
    thresholds: DriftThresholds
    command: str
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values; `results` in the form that every measuring command uses."""
        return {
            "command": self.command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                "system": platform.system(),
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
            },
            "verdict": self.verdict,
            "model": {
                "name": self.bundle.model_name,
                "version": self.bundle.model_version,
                "bundle_sha256": self.bundle.sha256,
                "training": self.bundle.training,
            },
            "source": self.source,
            "window": {
                "first_day": str(self.first_day),
                "last_day": str(self.day),
                "days": self.number_of_days,
                "rows": self.rows,
                "left_out": self.left_out,
            },
            "score": _finding(next(finding for finding in self.findings if finding.name == SCORE)),
            "features": [_finding(finding) for finding in self.findings if finding.name != SCORE],
            "concept": {**asdict(self.concept), "as_of": self.as_of.isoformat()},
            "thresholds": self.thresholds.model_dump(),
            "seconds": self.seconds,
            "results": self._results(),
        }

    def _results(self) -> list[dict[str, Any]]:
        psi = [
            _result(
                f"psi.{finding.name}", finding.distance.psi, "psi", self.thresholds.psi_warn, finding.verdict
            )
            for finding in self.findings
            if finding.distance and finding.verdict is not Verdict.NOT_JUDGED
        ]
        quality = [
            _result(f"matured.{q.metric}", q.current, "share", None, self.concept.verdict)
            | {
                "peer": "holdout",
                "peer_value": q.holdout,
                "ratio": q.current / q.holdout if q.holdout else None,
            }
            for q in self.concept.qualities
        ]
        return psi + quality

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `<model>-<day>.json` and `.html`, each in one step, and return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.bundle.model_name}-{self.day}"
        if self.source != "batch":
            name += f"-{self.source}"
        paths = folder / f"{name}.json", folder / f"{name}.html"
        _replace(paths[1], self.as_html())
        _replace(paths[0], json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n")
        return paths

    def as_html(self) -> str:
        """Return the page."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
        )
        plots = [("PSI of the score and of each feature", plot_psi(self.findings, self.thresholds))]
        plots.append(("Shares by bin, reference and window", plot_shares(self.bundle, self.findings)))
        if self.concept.qualities:
            title = f"Quality on matured labels, {self.thresholds.confidence:.0%} interval"
            plots.append((title, plot_quality(self.concept)))
        return environment.get_template("drift_report.html.j2").render(
            report=self,
            colours=_COLOURS,
            plots=[(title, base64.b64encode(content).decode()) for title, content in plots],
        )


def plot_psi(findings: Sequence[Finding], thresholds: DriftThresholds) -> bytes:
    """Return a PNG: one bar a judged column, the worst on top, with the thresholds."""
    judged = [f for f in findings if f.distance and f.verdict is not Verdict.NOT_JUDGED]
    shown = sorted(judged, key=lambda f: f.distance.psi if f.distance else 0.0)
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.28 * max(len(shown), 1)), layout="constrained")
    values = [f.distance.psi if f.distance else 0.0 for f in shown]
    axes.barh([f.name for f in shown], values, color=[_COLOURS[f.verdict] for f in shown], height=0.7)
    limit = max([*values, thresholds.psi_alert]) * 1.15
    axes.set_xlim(0, limit)
    for value, label in ((thresholds.psi_warn, "warn"), (thresholds.psi_alert, "alert")):
        axes.axvline(value, color="#52606d", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"{label} {value:g}",
            (value, 1),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            ha="center",
            va="bottom",
        )
    for i, value in enumerate(values):
        axes.annotate(f" {value:.3f}", (value, i), fontsize=8, va="center")
    axes.set_xlabel("population stability index")
    return _png(figure)


def plot_shares(bundle: ChampionBundle, findings: Sequence[Finding]) -> bytes:
    """Return a PNG: the score and the columns that moved most, bin by bin."""
    moved = sorted(
        (f for f in findings if f.distance and f.verdict is not Verdict.NOT_JUDGED),
        key=lambda f: (f.name != SCORE, -(f.distance.psi if f.distance else 0.0)),
    )[:_PANELS]
    pyplot = _pyplot()
    height = max(1, -(-len(moved) // 3))
    figure, grid = pyplot.subplots(height, 3, figsize=(11, 2.7 * height), layout="constrained", squeeze=False)
    for axes in grid.flat[len(moved) :]:
        axes.set_visible(False)
    for axes, finding in zip(grid.flat, moved, strict=False):
        reference = bundle.references[finding.name]
        expected = _padded(reference)
        places = np.arange(len(expected))
        for offset, counts, colour, label in (
            (-0.2, expected, _REFERENCE_COLOUR, "reference"),
            (0.2, finding.counts, _CURRENT_COLOUR, "window"),
        ):
            axes.bar(places + offset, counts / max(counts.sum(), 1.0), 0.4, color=colour, label=label)
        axes.set_title(f"{finding.name} ({finding.verdict})", fontsize=9, color=_COLOURS[finding.verdict])
        labels = _bin_labels(reference)
        step = max(1, len(labels) // 5)
        axes.set_xticks(places[::step], labels[::step], fontsize=7)
        axes.tick_params(axis="y", labelsize=7)
    if moved:
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return _png(figure)


def plot_quality(concept: ConceptFinding) -> bytes:
    """Return a PNG: each metric with its interval, and the holdout's value."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 0.9 + 0.5 * len(concept.qualities)), layout="constrained")
    for i, quality in enumerate(concept.qualities):
        axes.plot([quality.lower, quality.upper], [i, i], color=_CURRENT_COLOUR, linewidth=2)
        axes.plot(quality.current, i, "o", color=_CURRENT_COLOUR, label="matured labels" if i == 0 else None)
        axes.plot(quality.holdout, i, "D", color="#52606d", label="holdout" if i == 0 else None)
    axes.set_yticks(range(len(concept.qualities)), [quality.metric for quality in concept.qualities])
    axes.set_ylim(-0.6, len(concept.qualities) - 0.4)
    axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def _padded(reference: Reference) -> np.ndarray:
    return (
        np.append(reference.counts, 0.0) if isinstance(reference, CategoricalReference) else reference.counts
    )


def _bin_labels(reference: Reference) -> list[str]:
    if isinstance(reference, NumericReference):
        edges = [f"{edge:.3g}" for edge in reference.edges]
        return [f"<{edges[0]}", *(f"{edge}+" for edge in edges)] if edges else ["all"]
    return [str(category)[:12] for category in reference.categories] + [UNKNOWN]


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "verdict": finding.verdict,
        "reasons": finding.reasons,
        "rows": finding.rows,
        **(asdict(finding.distance) if finding.distance else {}),
        "nulls": asdict(finding.nulls) if finding.nulls else None,
        "unknown_categories": asdict(finding.unknown) if finding.unknown else None,
    }


def _result(name: str, value: float, unit: str, target: float | None, verdict: Verdict) -> dict[str, Any]:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": None,
        "peer_value": None,
        "ratio": None,
        "target": target,
        "met": None if verdict is Verdict.NOT_JUDGED else verdict is Verdict.OK,
    }


def _pyplot() -> Any:
    """Import matplotlib for files only: it is slow, and needs no display."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    return pyplot


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    _pyplot().close(figure)
    return buffer.getvalue()


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
