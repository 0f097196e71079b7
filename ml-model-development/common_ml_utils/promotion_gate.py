"""The promotion gate: challenger against champion on the same rows, a verdict with reasons, one alias move.

A refusal is a result. An error (no challenger, an altered bundle, no registry) raises, and nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from common_ml_utils.errors import RegistryError
from common_ml_utils.evaluation_utils import (
    METRICS,
    PairedComparison,
    paired_bootstrap,
    ranking_and_calibration,
)
from common_ml_utils.mlflow_utils import CHAMPION, STAGING, RegisteredBundle
from common_ml_utils.release_bundle import Manifest
from common_ml_utils.reports import measurement, write_report
from common_ml_utils.settings import GateSettings


@dataclass(frozen=True)
class Holdout:
    """Labelled rows no candidate was trained on; rows of one of `groups` are not independent."""

    frame: pd.DataFrame
    labels: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on."""

    challenger: dict[str, float]
    champion: dict[str, float] | None = None
    comparison: PairedComparison | None = None
    same_bundle: bool = False
    champion_saw_holdout: bool = False


@dataclass(frozen=True)
class Verdict:
    """Promote or refuse, with every reason; for a promotion, what was shown."""

    decision: Literal["promote", "refuse"]
    reasons: list[str] = field(default_factory=list)


class Registry(Protocol):
    """What the gate needs of the model registry."""

    def load(self, model_name: str, alias: str) -> RegisteredBundle | None:
        """Return the verified bundle behind an alias."""

    def promote(self, model_name: str, version: int) -> None:
        """Move the alias `champion`."""


class Ledger(Protocol):
    """What the gate needs of the ledger."""

    def appending(self, model_name: str, decision: str, entry: dict[str, Any]) -> AbstractContextManager[str]:
        """Append a verdict that stands only if the block succeeds."""


def judge(evidence: Evidence, gate: GateSettings) -> Verdict:
    """Decide from the evidence alone: the first model needs the floor, later ones must also be better."""
    value = evidence.challenger[gate.metric]
    against: list[str] = []
    if evidence.same_bundle:
        return Verdict("refuse", ["not better: the challenger is the champion, byte for byte"])
    if evidence.champion_saw_holdout:
        return Verdict("refuse", ["no fair comparison: the champion was trained on a part of this holdout"])
    if value < gate.floor:
        against.append(f"below the floor: {gate.metric} {value:.4f} < {gate.floor:.4f}")
    comparison, champion = evidence.comparison, evidence.champion
    if comparison is None or champion is None:
        return (
            Verdict("refuse", against)
            if against
            else Verdict(
                "promote", [f"first model: {gate.metric} {value:.4f} reaches the floor {gate.floor:.4f}"]
            )
        )
    shown = (
        f"{gate.metric} {comparison.challenger:.4f} against {comparison.champion:.4f} "
        f"({comparison.difference:+.4f}, interval {comparison.lower:+.4f} to {comparison.upper:+.4f}), "
        f"better in {comparison.probability_better:.1%} of {comparison.resamples} resamples"
    )
    if comparison.probability_better < gate.confidence or comparison.difference <= 0:
        against.append(f"not better: {shown}; {gate.confidence:.1%} are asked for")
    worse = evidence.challenger["calibration_error"] - champion["calibration_error"]
    if worse > gate.calibration_tolerance:
        against.append(
            f"calibration error grows by {worse:.4f}, at most {gate.calibration_tolerance} is allowed"
        )
    return Verdict("refuse", against) if against else Verdict("promote", [f"better: {shown}"])


def gather_evidence(
    challenger: RegisteredBundle,
    champion: RegisteredBundle | None,
    holdout_for: Callable[[RegisteredBundle], Holdout],
    saw_holdout: Callable[[Manifest, Manifest], bool],
    gate: GateSettings,
) -> Evidence:
    """Score both bundles on the challenger's holdout.

    `holdout_for` gives that holdout with the features of a bundle's own feature service; both must hold the
    same rows. `saw_holdout(champion, challenger)` tells whether the champion's training reaches into it.
    """
    rows = holdout_for(challenger)
    scores = challenger.bundle.score_frame(rows.frame)
    metrics = ranking_and_calibration(rows.labels, scores)
    if champion is None:
        return Evidence(metrics)
    if champion.bundle.sha256 == challenger.bundle.sha256:
        return Evidence(metrics, metrics, same_bundle=True)
    if saw_holdout(champion.bundle.manifest, challenger.bundle.manifest):
        return Evidence(metrics, champion_saw_holdout=True)
    same_service = champion.bundle.contract.sha256 == challenger.bundle.contract.sha256
    champion_rows = rows if same_service else holdout_for(champion)
    if not np.array_equal(champion_rows.labels, rows.labels):
        raise RegistryError("champion and challenger were given different holdout rows")
    champion_scores = champion.bundle.score_frame(champion_rows.frame)
    comparison = paired_bootstrap(
        rows.labels,
        champion_scores,
        scores,
        rows.groups,
        METRICS[gate.metric],
        resamples=gate.resamples,
        seed=gate.seed,
    )
    return Evidence(metrics, ranking_and_calibration(rows.labels, champion_scores), comparison)


@dataclass(frozen=True)
class PromotionGate:
    """Judges `staging` against `champion`, writes the ledger, moves the alias on a promotion, reports.

    `holdout_for(bundle, challenger)` gives the challenger's holdout with the bundle's features.
    """

    model_name: str
    registry: Registry
    ledger: Ledger
    settings: GateSettings
    holdout_for: Callable[[RegisteredBundle, RegisteredBundle], Holdout]
    saw_holdout: Callable[[Manifest, Manifest], bool]
    report: Path

    def run(self) -> Verdict:
        """Decide once; raises RegistryError when there is no challenger."""
        challenger = self.registry.load(self.model_name, STAGING)
        if challenger is None:
            raise RegistryError(f"{self.model_name} has no version with alias {STAGING!r}: train one first")
        champion = self.registry.load(self.model_name, CHAMPION)
        evidence = gather_evidence(
            challenger,
            champion,
            lambda bundle: self.holdout_for(bundle, challenger),
            self.saw_holdout,
            self.settings,
        )
        verdict = judge(evidence, self.settings)
        facts = _facts(challenger, champion, evidence, verdict, self.settings)
        with self.ledger.appending(self.model_name, verdict.decision, facts) as digest:
            if verdict.decision == "promote":
                self.registry.promote(self.model_name, challenger.version)
        in_production = challenger if verdict.decision == "promote" else champion
        write_report(
            self.report,
            _results(evidence, self.settings),
            model_name=self.model_name,
            champion_after=None if in_production is None else in_production.version,
            ledger_hash=digest,
            **facts,
        )
        reasons = "; ".join(verdict.reasons)
        print(f"{self.model_name} version {challenger.version}: {verdict.decision}: {reasons}")
        return verdict


def _facts(
    challenger: RegisteredBundle,
    champion: RegisteredBundle | None,
    evidence: Evidence,
    verdict: Verdict,
    gate: GateSettings,
) -> dict[str, Any]:
    return {
        "verdict": verdict.decision,
        "reasons": verdict.reasons,
        "challenger": _candidate(challenger, evidence.challenger),
        "champion": None if champion is None else _candidate(champion, evidence.champion),
        "comparison": None if evidence.comparison is None else asdict(evidence.comparison),
        "gate": gate.model_dump(mode="json"),
    }


def _candidate(candidate: RegisteredBundle, metrics: dict[str, float] | None) -> dict[str, Any]:
    manifest = candidate.bundle.manifest
    return {
        "version": candidate.version,
        "bundle_sha256": candidate.bundle.sha256,
        "data_version": manifest.data_version,
        "git_commit": manifest.git_commit,
        "training": manifest.training.model_dump(mode="json"),
        "metrics": metrics,
    }


def _results(evidence: Evidence, gate: GateSettings) -> list[dict[str, Any]]:
    champion = evidence.champion or {}
    return [
        measurement(
            name,
            value,
            "ratio",
            target=gate.floor if name == gate.metric else None,
            peer="champion" if name in champion else "",
            peer_value=champion.get(name),
        )
        for name, value in evidence.challenger.items()
    ]
