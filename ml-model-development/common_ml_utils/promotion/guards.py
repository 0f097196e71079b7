"""The guards of the gate: what must hold of a challenger beside a good comparison.

Pure functions: figures in, findings out. A finding says what was looked at, its value and limit, and
whether it passes, needs a person's approval (the grey band) or refuses. docs/promotion.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common_ml_utils.promotion.evaluation import SLICE, Comparison, SliceEvaluation
from common_ml_utils.settings import GateSettings

Outcome = Literal["pass", "needs approval", "refuse"]
OK: Outcome = "pass"
ASK: Outcome = "needs approval"
REFUSE: Outcome = "refuse"
LIKELY = 0.75  # share of resamples from which a growing calibration error asks


@dataclass(frozen=True)
class Finding:
    """What one guard saw; `message` says it in a sentence, `value` and `limit` where it is a figure."""

    guard: str
    outcome: Outcome
    message: str
    value: float | None = None
    limit: float | None = None
    unit: str = ""


def floor_finding(value: float, gate: GateSettings) -> Finding:
    """Refuse a metric below the floor; ask about one that is too good to be true."""
    shown = f"{gate.metric} {value:.4f}"
    if value < gate.floor:
        return Finding("floor", REFUSE, f"below the floor: {shown} < {gate.floor:.4f}", value, gate.floor)
    if value > gate.ceiling:
        message = f"too good to be true: {shown} > {gate.ceiling:.4f}; look for a leak"
        return Finding("floor", ASK, message, value, gate.ceiling)
    return Finding("floor", OK, f"{shown} reaches the floor {gate.floor:.4f}", value, gate.floor)


def comparison_finding(comparison: Comparison, gate: GateSettings) -> Finding:
    """Test non-inferiority: not worse, worse, or undecidable from this holdout."""
    shown = (
        f"{gate.metric} {comparison.challenger:.4f} against {comparison.champion:.4f} "
        f"({comparison.difference:+.4f}, interval {comparison.lower:+.4f} to {comparison.upper:+.4f}), "
        f"better in {comparison.probability_better:.1%} and not worse by more than the margin "
        f"{comparison.margin:g} in {comparison.probability_not_worse:.1%} of {comparison.resamples} resamples"
    )
    sure = comparison.probability_not_worse
    if sure >= gate.confidence:
        better = comparison.probability_better >= gate.confidence
        outcome, word = OK, "better" if better else "not worse"
    elif sure <= 1 - gate.confidence:
        outcome, word = REFUSE, "not better: worse than the champion"
    else:
        outcome, word = ASK, "undecided: the holdout can't tell whether it is worse"
    return Finding("comparison", outcome, f"{word}: {shown}", comparison.difference, -comparison.margin)


def slice_findings(
    slices: Mapping[str, SliceEvaluation],
    champion: Mapping[str, SliceEvaluation],
    differences: Mapping[str, np.ndarray],
    gate: GateSettings,
) -> list[Finding]:
    """Judge every slice with enough support; the allowed error is shared among them (Bonferroni).

    Worse by more than the margin beyond doubt refuses; worse beyond doubt, and by more than the margin at the
    best estimate, asks. `differences` are the resamples, by slice.
    """
    judged = [
        name
        for name, mine in slices.items()
        if name in champion
        and min(mine.support, champion[name].support) >= gate.slice_support
        and len(differences[name])
    ]
    findings = []
    for name, mine in slices.items():
        guard = SLICE + name
        if name not in judged:
            message = f"not judged: {mine.support} of the rarer kind, {gate.slice_support} are needed"
            findings.append(Finding(guard, OK, message))
            continue
        difference = mine.value - champion[name].value
        upper = float(np.quantile(differences[name], 1 - gate.slice_error / len(judged)))
        shown = (
            f"{gate.metric} {mine.value:.4f} against {champion[name].value:.4f} ({difference:+.4f}, "
            f"at most {upper:+.4f} at {1 - gate.slice_error / len(judged):.1%})"
        )
        if upper < -gate.slice_margin:
            outcome, word = REFUSE, "worse"
        elif upper < 0 and difference < -gate.slice_margin:
            outcome, word = ASK, "probably worse"
        else:
            outcome, word = OK, "not worse"
        findings.append(Finding(guard, outcome, f"{word}: {shown}", difference, -gate.slice_margin))
    return findings


def calibration_finding(
    error: float, champion: float | None, differences: Sequence[float] | np.ndarray, gate: GateSettings
) -> Finding:
    """Refuse an error beyond the limit, or surely grown by more than the tolerance; ask if likely grown."""
    if error > gate.calibration_limit:
        message = f"calibration error {error:.4f} is above {gate.calibration_limit}"
        return Finding("calibration", REFUSE, message, error, gate.calibration_limit)
    if champion is None:
        message = f"calibration error {error:.4f}, at most {gate.calibration_limit} is allowed"
        return Finding("calibration", OK, message, error, gate.calibration_limit)
    worse, allowed = error - champion, gate.calibration_tolerance
    if worse <= allowed:
        message = f"calibration error {error:.4f} against {champion:.4f}"
        return Finding("calibration", OK, message, worse, allowed)
    sure = float(np.mean(np.asarray(differences) > allowed)) if len(differences) else 0.0
    outcome: Outcome = REFUSE if sure >= gate.confidence else ASK if sure >= LIKELY else OK
    message = (
        f"calibration error grows by {worse:.4f}, at most {allowed} is allowed (beyond it in {sure:.1%} of "
        "the resamples)"
    )
    return Finding("calibration", outcome, message, worse, allowed)
