"""The promotion gate: challenger against champion on the same rows, guards, a verdict, one alias move.

A refusal is a result. An error (no challenger, an altered bundle, no registry) raises, and nothing moves.
Any kind of model: a `GateProject` measures candidates and supplies the guards of its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from common_ml_utils.errors import RegistryError
from common_ml_utils.mlflow_utils import CHAMPION, STAGING, RegisteredBundle
from common_ml_utils.promotion.evaluation import (
    CALIBRATION,
    SLICE,
    Comparison,
    Evaluation,
    SliceComparison,
    compare,
    compare_slices,
)
from common_ml_utils.promotion.guards import (
    ASK,
    OK,
    REFUSE,
    Finding,
    calibration_finding,
    comparison_finding,
    floor_finding,
    slice_findings,
)
from common_ml_utils.promotion.ledger import disagreement, last_rollback_of, production_at
from common_ml_utils.promotion.report import write_gate_page
from common_ml_utils.reports import measurement, write_report
from common_ml_utils.settings import GateSettings
from common_ml_utils.slices import Slices

Decision = Literal["promote", "refuse", "needs approval"]


@dataclass(frozen=True)
class Holdout:
    """Labelled rows no candidate was trained on; rows of one of `groups` are not independent."""

    frame: pd.DataFrame
    labels: np.ndarray
    groups: np.ndarray
    slices: Slices = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a project measured: the challenger on its whole holdout, and both on the rows fair to both.

    `pair` is (champion, challenger) on the same rows, None without a champion and when there is no fair
    comparison; then `unfair` says why. `notes` are said in the report.
    """

    challenger: Evaluation
    pair: tuple[Evaluation, Evaluation] | None = None
    unfair: str = ""
    notes: tuple[str, ...] = ()


class GateProject(Protocol):
    """What a model project supplies."""

    def measure(self, challenger: RegisteredBundle[Any], champion: RegisteredBundle[Any] | None) -> Measured:
        """Measure the challenger on its holdout, and the champion on the rows it was not trained on.

        Raises DataError for a holdout that can't be measured.
        """

    def findings(
        self, challenger: RegisteredBundle[Any], champion: RegisteredBundle[Any] | None
    ) -> Sequence[Finding]:
        """Return what the guards of bundle and training data found."""


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on."""

    measured: Measured | None = None
    comparison: Comparison | None = None
    slices: Sequence[SliceComparison] = ()
    findings: Sequence[Finding] = ()


@dataclass(frozen=True)
class Verdict:
    """The decision with every reason: what speaks against, or for a promotion what was shown."""

    decision: Decision
    reasons: list[str] = field(default_factory=list)


class Registry(Protocol):
    """What the gate needs of the model registry."""

    def load(self, model_name: str, alias: str) -> RegisteredBundle[Any] | None:
        """Return the verified bundle behind an alias."""

    def version_of(self, model_name: str, alias: str) -> int | None:
        """Return the version behind an alias."""

    def promote(self, model_name: str, version: int) -> None:
        """Move the alias `champion`."""


class Ledger(Protocol):
    """What the gate needs of the ledger."""

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Return all entries in order, after checking the chain."""

    def appending(self, model_name: str, decision: str, entry: dict[str, Any]) -> AbstractContextManager[str]:
        """Append a verdict that stands only if the block succeeds."""


def judge(findings: Sequence[Finding]) -> Verdict:
    """Decide from the findings: one that refuses refuses, else one that asks asks, else promote."""
    against = [finding.message for finding in findings if finding.outcome == REFUSE]
    asking = [finding.message for finding in findings if finding.outcome == ASK]
    if against:
        return Verdict("refuse", [*against, *asking])
    if asking:
        return Verdict("needs approval", asking)
    shown = [f.message for f in findings if f.guard in ("first model", "comparison")]
    return Verdict("promote", shown)


def gather_evidence(
    challenger: RegisteredBundle[Any],
    champion: RegisteredBundle[Any] | None,
    project: GateProject,
    gate: GateSettings,
) -> Evidence:
    """Measure both candidates and run every guard; a challenger that is the champion is only named."""
    if champion is not None and champion.bundle.sha256 == challenger.bundle.sha256:
        message = "not better: the challenger is the champion, byte for byte"
        return Evidence(findings=[Finding("same bundle", REFUSE, message)])
    measured = project.measure(challenger, champion)
    comparison, slices, findings = judge_measured(measured, gate)
    return Evidence(measured, comparison, slices, [*findings, *project.findings(challenger, champion)])


def judge_measured(
    measured: Measured, gate: GateSettings
) -> tuple[Comparison | None, list[SliceComparison], list[Finding]]:
    """Compare the candidates where there are two, and judge metric, slices and calibration."""
    mine = measured.challenger
    floor = floor_finding(mine.metrics[gate.metric], gate)
    if measured.pair is None:
        alone = (
            Finding("comparison", REFUSE, f"no fair comparison: {measured.unfair}")
            if measured.unfair
            else Finding("first model", OK, f"first model: {floor.message}")
        )
        findings = [floor, alone]
        if CALIBRATION in mine.resampled:
            findings.append(calibration_finding(mine.metrics[CALIBRATION], None, [], gate))
        return None, [], findings
    old, new = measured.pair
    comparison, differences = compare(
        old, new, gate.metric, margin=gate.margin, resamples=gate.resamples, seed=gate.seed
    )
    by_slice = {
        name.removeprefix(SLICE): sample for name, sample in differences.items() if name.startswith(SLICE)
    }
    findings = [
        floor,
        comparison_finding(comparison, gate),
        *slice_findings(new.slices, old.slices, by_slice, gate),
    ]
    if CALIBRATION in differences:
        errors = new.metrics[CALIBRATION], old.metrics[CALIBRATION]
        findings.append(calibration_finding(*errors, differences[CALIBRATION], gate))
    return comparison, compare_slices(old, new, by_slice), findings


def ledger_findings(
    rows: Sequence[Mapping[str, Any]],
    challenger: RegisteredBundle[Any],
    champion: RegisteredBundle[Any] | None,
) -> list[Finding]:
    """Ask where the alias is not where the ledger put it, or a bundle that was rolled back would return."""
    name = challenger.model_name
    differs = disagreement(
        name, production_at(rows).get(name), None if champion is None else champion.version
    )
    findings = [Finding("ledger", ASK, differs)] if differs else []
    rolled_back = last_rollback_of(rows, name, challenger.bundle.sha256)
    if rolled_back is not None:
        entry = rolled_back["entry"]
        message = (
            f"this bundle was rolled back on {rolled_back['decided_at']:%Y-%m-%d} by {entry['by']}: "
            f"{entry['reason']}"
        )
        findings.append(Finding("ledger", ASK, message))
    return findings or [Finding("ledger", OK, "alias and ledger agree")]


@dataclass(frozen=True)
class PromotionGate:
    """Judges `staging` against `champion`, writes the ledger, moves the alias on a promotion, reports."""

    model_name: str
    registry: Registry
    ledger: Ledger
    settings: GateSettings
    project: GateProject
    report: Path

    def run(self) -> Verdict:
        """Decide once; raises RegistryError when there is no challenger or an alias moves meanwhile."""
        challenger = self.registry.load(self.model_name, STAGING)
        if challenger is None:
            raise RegistryError(f"{self.model_name} has no version with alias {STAGING!r}: train one first")
        champion = self.registry.load(self.model_name, CHAMPION)
        history = ledger_findings(self.ledger.rows(), challenger, champion)
        evidence = gather_evidence(challenger, champion, self.project, self.settings)
        evidence = replace(evidence, findings=[*evidence.findings, *history])
        verdict = judge(evidence.findings)
        facts = _facts(challenger, champion, evidence, verdict, self.settings)
        with self.ledger.appending(self.model_name, verdict.decision, facts) as digest:
            self._require_unmoved(challenger, champion)
            if verdict.decision == "promote":
                self.registry.promote(self.model_name, challenger.version)
        in_production = challenger if verdict.decision == "promote" else champion
        document = {
            "model_name": self.model_name,
            "champion_after": None if in_production is None else in_production.version,
            "ledger_hash": digest,
            **facts,
        }
        write_report(self.report, _results(evidence, self.settings), **document)
        write_gate_page(self.report.with_suffix(".html"), document)
        reasons = "; ".join(verdict.reasons)
        print(f"{self.model_name} version {challenger.version}: {verdict.decision}: {reasons}")
        return verdict

    def _require_unmoved(
        self, challenger: RegisteredBundle[Any], champion: RegisteredBundle[Any] | None
    ) -> None:
        """Raise RegistryError when an alias names another version than the one that was judged."""
        judged = {STAGING: challenger.version, CHAMPION: None if champion is None else champion.version}
        for alias, version in judged.items():
            now = self.registry.version_of(self.model_name, alias)
            if now != version:
                raise RegistryError(
                    f"{alias} of {self.model_name} moved from version {version} to {now} while it was "
                    "judged: run the gate again"
                )


def _facts(
    challenger: RegisteredBundle[Any],
    champion: RegisteredBundle[Any] | None,
    evidence: Evidence,
    verdict: Verdict,
    gate: GateSettings,
) -> dict[str, Any]:
    measured = evidence.measured
    pair = None if measured is None else measured.pair
    in_production = challenger if verdict.decision == "promote" else champion
    return {
        "verdict": verdict.decision,
        "reasons": verdict.reasons,
        "challenger": _candidate(challenger, None if measured is None else measured.challenger),
        "champion": None if champion is None else _candidate(champion, None if pair is None else pair[0]),
        "in_production": None
        if in_production is None
        else {"version": in_production.version, "bundle_sha256": in_production.bundle.sha256},
        "comparison": None if evidence.comparison is None else asdict(evidence.comparison),
        "slices": [asdict(each) for each in evidence.slices],
        "findings": [asdict(finding) for finding in evidence.findings],
        "notes": [] if measured is None else list(measured.notes),
        "gate": gate.model_dump(mode="json"),
    }


def _candidate(candidate: RegisteredBundle[Any], evaluation: Evaluation | None) -> dict[str, Any]:
    manifest = candidate.bundle.manifest
    return {
        "version": candidate.version,
        "bundle_sha256": candidate.bundle.sha256,
        "data_version": manifest.data_version,
        "git_commit": manifest.git_commit,
        "training": manifest.training.model_dump(mode="json"),
        "metrics": None if evaluation is None else dict(evaluation.metrics),
        "holdout_rows": None if evaluation is None else evaluation.rows,
        "holdout_support": None if evaluation is None else evaluation.support,
    }


def _results(evidence: Evidence, gate: GateSettings) -> list[dict[str, Any]]:
    if evidence.measured is None:
        return []
    pair = evidence.measured.pair
    champion = {} if pair is None else pair[0].metrics
    mine = evidence.measured.challenger if pair is None else pair[1]
    return [
        measurement(
            name,
            value,
            "ratio",
            target=gate.floor if name == gate.metric else None,
            peer="champion" if name in champion else "",
            peer_value=champion.get(name),
        )
        for name, value in mine.metrics.items()
    ]
