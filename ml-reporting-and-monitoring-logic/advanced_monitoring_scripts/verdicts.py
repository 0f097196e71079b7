"""From numbers to verdicts: which differences count, and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

import numpy as np

from advanced_monitoring_scripts.champion_bundle import SCORE, ChampionBundle
from advanced_monitoring_scripts.concept_drift import Quality, qualities
from advanced_monitoring_scripts.distribution_drift import (
    CategoricalReference,
    Distance,
    RateChange,
    Reference,
    distance,
    rate_change,
)
from advanced_monitoring_scripts.matured_labels import LabelledScores
from advanced_monitoring_scripts.scored_rows import ScoredRows
from advanced_monitoring_scripts.settings import DriftThresholds

DAYS_OF_A_WEEK = 7


class Verdict(StrEnum):
    """How bad it is; `not_judged` says that nothing can be said."""

    NOT_JUDGED = "not_judged"
    OK = "ok"
    WARN = "warn"
    ALERT = "alert"


_SEVERITY = list(Verdict)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the most severe verdict; of nothing at all, `not_judged`.

    >>> worst([Verdict.OK, Verdict.WARN, Verdict.NOT_JUDGED])
    <Verdict.WARN: 'warn'>
    """
    return max(verdicts, key=_SEVERITY.index, default=Verdict.NOT_JUDGED)


def graded(value: float, warn: float, alert: float) -> Verdict:
    """Return the verdict on a value where more is worse; a threshold itself counts."""
    return Verdict.ALERT if value >= alert else Verdict.WARN if value >= warn else Verdict.OK


@dataclass(frozen=True)
class Finding:
    """The verdict on one feature or on the score."""

    name: str
    verdict: Verdict
    reasons: list[str]
    rows: int
    counts: np.ndarray = field(repr=False)
    distance: Distance | None = None
    nulls: RateChange | None = None
    unknown: RateChange | None = None


@dataclass(frozen=True)
class ConceptFinding:
    """The verdict on the quality of matured scores."""

    verdict: Verdict
    reasons: list[str]
    rows: int = 0
    positives: int = 0
    first_day: str | None = None
    last_day: str | None = None
    qualities: list[Quality] = field(default_factory=list)


def judge_column(name: str, reference: Reference, values: np.ndarray, thresholds: DriftThresholds) -> Finding:
    """Compare one column with its reference."""
    counts, nulls = reference.current_counts(values), reference.null_number(values)
    rows, reference_rows = len(values), float(reference.counts.sum() + reference.null_count)
    if rows < thresholds.minimum_rows:
        reason = f"{rows} rows, {thresholds.minimum_rows} are needed"
        return Finding(name, Verdict.NOT_JUDGED, [reason], rows, counts)
    if reference_rows == 0:
        return Finding(name, Verdict.NOT_JUDGED, ["the reference has no rows"], rows, counts)
    verdicts: list[Verdict] = []
    reasons: list[str] = []
    null_change = rate_change(reference.null_count, reference_rows, nulls, rows, thresholds.chance)
    verdicts.append(_judge_rate("nulls", null_change, thresholds, reasons))
    unknown = None
    if isinstance(reference, CategoricalReference):
        unknown = rate_change(0, reference_rows, float(counts[-1]), rows, thresholds.chance)
        verdicts.append(_judge_rate("unknown categories", unknown, thresholds, reasons))
    apart = None
    if counts.sum() >= thresholds.minimum_rows and reference.counts.sum() > 0:
        apart = distance(reference, counts, thresholds.chance)
        verdict = graded(apart.psi, thresholds.psi_warn, thresholds.psi_alert)
        if verdict is not Verdict.OK and apart.psi <= apart.psi_by_chance:
            reasons.append(f"PSI {apart.psi:.3f} is within chance ({apart.psi_by_chance:.3f})")
            verdict = Verdict.OK
        elif verdict is not Verdict.OK:
            limit = thresholds.psi_alert if verdict is Verdict.ALERT else thresholds.psi_warn
            reasons.append(f"PSI {apart.psi:.3f} >= {limit:g}")
        verdicts.append(verdict)
    return Finding(name, worst(verdicts), reasons, rows, counts, apart, null_change, unknown)


def judge_columns(bundle: ChampionBundle, rows: ScoredRows, thresholds: DriftThresholds) -> list[Finding]:
    """Judge the score and every feature; a calendar feature only on whole weeks."""
    findings = []
    for name, reference in bundle.references.items():
        finding = judge_column(name, reference, rows.column(name), thresholds)
        if name in bundle.calendar_features and rows.number_of_days % DAYS_OF_A_WEEK:
            reason = f"a calendar feature: {rows.number_of_days} day(s) are no whole weeks"
            finding = Finding(
                name,
                Verdict.NOT_JUDGED,
                [reason],
                finding.rows,
                finding.counts,
                finding.distance,
                finding.nulls,
            )
        findings.append(finding)
    return sorted(findings, key=lambda finding: finding.name != SCORE)


def judge_concept(
    labelled: LabelledScores, holdout: dict[str, float], thresholds: DriftThresholds
) -> ConceptFinding:
    """Compare the quality on matured labels with the holdout's."""
    rows, positives = len(labelled.labels), int(labelled.labels.sum())
    needed = thresholds.minimum_positives
    if rows == 0:
        return ConceptFinding(Verdict.NOT_JUDGED, ["no scored row has a label that is known yet"])
    finding = partial(
        ConceptFinding,
        rows=rows,
        positives=positives,
        first_day=str(labelled.first_day),
        last_day=str(labelled.last_day),
    )
    if min(positives, rows - positives) < needed:
        reason = f"{positives} positives among {rows} labelled rows, {needed} of each class are needed"
        return finding(Verdict.NOT_JUDGED, [reason])
    if not holdout:
        return finding(Verdict.NOT_JUDGED, ["the champion's training run has no holdout metrics"])
    measured = qualities(labelled.labels, labelled.scores, labelled.groups, holdout, thresholds.confidence)
    verdicts, reasons = [], []
    for quality in measured:
        verdict = _judge_quality(quality, thresholds)
        verdicts.append(verdict)
        if verdict is not Verdict.OK:
            reasons.append(
                f"{quality.metric} {quality.current:.3f} [{quality.lower:.3f}, {quality.upper:.3f}], "
                f"the holdout had {quality.holdout:.3f}"
            )
    return finding(worst(verdicts), reasons, qualities=measured)


def overall(findings: Iterable[Finding], concept: ConceptFinding) -> Verdict:
    """Return the worst verdict; `not_judged` when the score could not be judged and nothing else is wrong."""
    found = list(findings)
    result = worst([*(finding.verdict for finding in found), concept.verdict])
    score = next(finding.verdict for finding in found if finding.name == SCORE)
    return score if score is Verdict.NOT_JUDGED and result is Verdict.OK else result


def _judge_rate(what: str, change: RateChange, thresholds: DriftThresholds, reasons: list[str]) -> Verdict:
    difference = abs(change.difference)
    verdict = graded(difference, thresholds.rate_warn, thresholds.rate_alert)
    if verdict is Verdict.OK or difference <= change.by_chance:
        return Verdict.OK
    reasons.append(f"{what} {change.reference:.1%} -> {change.current:.1%}")
    return verdict


def _judge_quality(quality: Quality, thresholds: DriftThresholds) -> Verdict:
    if quality.upper >= quality.holdout:
        return Verdict.OK
    if quality.metric == "auc_roc":
        return graded(quality.loss, thresholds.auc_roc_warn, thresholds.auc_roc_alert)
    share = quality.loss / quality.holdout if quality.holdout > 0 else 0.0
    return graded(share, thresholds.average_precision_warn, thresholds.average_precision_alert)
