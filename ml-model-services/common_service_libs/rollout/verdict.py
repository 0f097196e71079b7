"""The verdict on a canary, from what it and the champion did in the same window; pure.

Each check says `pass`, `watch` (not good enough to promote) or `abort`. A difference counts only if it is
both significant and large: at a million requests everything is significant, at a hundred nothing is small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from common_service_libs.rollout.window import Agreement, Counts, Summary


class Verdict(StrEnum):
    """What to do with a canary; `promote-ready` is advice to the gate, `abort` is carried out."""

    CONTINUE = "continue"
    PROMOTE_READY = "promote-ready"
    ABORT = "abort"


class Finding(StrEnum):
    """What one check says."""

    PASS = "pass"  # noqa: S105 - no password
    WATCH = "watch"
    ABORT = "abort"


class Limits(msgspec.Struct, frozen=True):
    """When a canary is stopped, and when it is ready; shares are of requests."""

    minimum: int = 200
    promote_minimum: int = 2000
    z: float = 3.29  # one-sided p of 0.0005
    error_share: float = 0.005
    error_count: int = 5
    degraded_share: float = 0.02
    decision_share: float = 0.05
    decision_ratio: float = 1.5
    latency_ratio: float = 2.0
    latency_ms: float = 5.0
    psi_watch: float = 0.1
    psi_abort: float = 0.25
    agreement_watch: float = 0.95
    agreement_abort: float = 0.8


DEFAULT_LIMITS = Limits()


class Check(msgspec.Struct, frozen=True):
    """One comparison: the value of the canary beside that of the champion (or its limit)."""

    name: str
    finding: Finding
    canary: float | None
    champion: float | None
    detail: str = ""


class Report(msgspec.Struct, frozen=True):
    """A verdict with all that led to it."""

    verdict: Verdict
    reason: str
    canary_requests: int
    champion_requests: int
    checks: tuple[Check, ...]


def judge_canary(
    seen: Summary,
    *,
    reference: Sequence[int] | None = None,
    mildest: str | None = None,
    shadow_is_canary: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """Return the verdict on what was seen.

    `reference` holds the counts of the canary's scores in training, in the bins of the window; `mildest` is
    the decision that is no alert. The agreement of the shadow counts if it is the same bundle.
    """
    champion = seen.variants.get("champion", Counts())
    canary = seen.variants.get("canary", Counts())
    checks = [_errors(canary, champion, limits)]
    enough = canary.requests >= limits.minimum and champion.requests >= limits.minimum
    if enough:
        checks += [
            _share("degraded", "degraded", canary, champion, limits),
            _share("incomplete", "incomplete", canary, champion, limits),
            _latency(canary, champion, limits),
            *_decisions(canary, champion, mildest, limits),
            _drift(canary, champion, reference, limits),
        ]
    if shadow_is_canary and seen.shadow.scored >= limits.minimum:
        checks.append(_agreement(seen.shadow, limits))
    return _report(canary, champion, enough, checks, limits)


def _report(
    canary: Counts, champion: Counts, enough: bool, checks: Sequence[Check], limits: Limits
) -> Report:
    aborting = [check.name for check in checks if check.finding is Finding.ABORT]
    watched = [check.name for check in checks if check.finding is Finding.WATCH]
    verdict = Verdict.CONTINUE
    if aborting:
        verdict, reason = Verdict.ABORT, f"worse than the champion: {', '.join(aborting)}"
    elif not enough:
        reason = f"not enough requests yet, {limits.minimum} of each are needed"
    elif watched:
        reason = f"not good enough: {', '.join(watched)}"
    elif canary.requests < limits.promote_minimum:
        reason = f"nothing against it; {limits.promote_minimum} requests of the canary are needed"
    else:
        verdict, reason = Verdict.PROMOTE_READY, "no worse than the champion in any check"
    return Report(verdict, reason, canary.requests, champion.requests, tuple(checks))


def two_proportions(hits: int, of: int, other_hits: int, other_of: int) -> float:
    """Return the z of two proportions, pooled: positive where the first is larger; 0 without cases.

    >>> round(two_proportions(30, 100, 10, 100), 3)
    3.536
    """
    if not of or not other_of:
        return 0.0
    pooled = (hits + other_hits) / (of + other_of)
    error = math.sqrt(pooled * (1 - pooled) * (1 / of + 1 / other_of))
    return (hits / of - other_hits / other_of) / error if error else 0.0


def psi(counts: Mapping[int, int], expected: Mapping[int, int]) -> float:
    """Return the population stability index of two counts by bin, less what chance alone makes of it.

    Half a case is added to each bin, so that an empty one says little in a small sample. The index of two
    samples of one distribution is about (bins - 1) * (1/n + 1/m).

    >>> psi({0: 500, 1: 500}, {0: 5000, 1: 5000})
    0.0
    """
    bins = counts.keys() | expected.keys()
    n, m = sum(counts.values()), sum(expected.values())
    if not n or not m:
        return 0.0
    total = 0.0
    for at in bins:
        share = (counts.get(at, 0) + 0.5) / (n + 0.5 * len(bins))
        other = (expected.get(at, 0) + 0.5) / (m + 0.5 * len(bins))
        total += (share - other) * math.log(share / other)
    return max(0.0, total - (len(bins) - 1) * (1 / n + 1 / m))


def _errors(canary: Counts, champion: Counts, limits: Limits) -> Check:
    """Judge errors even before there are enough requests: they must not wait for them."""
    of, other_of = canary.requests + canary.errors, champion.requests + champion.errors
    share = canary.errors / of if of else 0.0
    other = champion.errors / other_of if other_of else 0.0
    finding = Finding.PASS
    if share > other + limits.error_share and canary.errors >= limits.error_count:
        significant = two_proportions(canary.errors, of, champion.errors, other_of) > limits.z
        finding = Finding.ABORT if significant else Finding.WATCH
    return Check("errors", finding, share, other)


def _share(name: str, count: str, canary: Counts, champion: Counts, limits: Limits) -> Check:
    hits, other_hits = getattr(canary, count), getattr(champion, count)
    share, other = hits / canary.requests, other_hits / champion.requests
    worse = (
        share > other + limits.degraded_share
        and two_proportions(hits, canary.requests, other_hits, champion.requests) > limits.z
    )
    return Check(name, Finding.ABORT if worse else Finding.PASS, share, other)


def _latency(canary: Counts, champion: Counts, limits: Limits) -> Check:
    p99, other = canary.latency_ms(0.99) or 0.0, champion.latency_ms(0.99) or 0.0
    slower = p99 > other * limits.latency_ratio and p99 > other + limits.latency_ms
    return Check("latency p99", Finding.ABORT if slower else Finding.PASS, p99, other, "milliseconds")


def _decisions(canary: Counts, champion: Counts, mildest: str | None, limits: Limits) -> list[Check]:
    """Compare the share of each decision, and that of all that are an alert."""
    groups: dict[str, tuple[str, ...]] = {
        name: (name,) for name in sorted(canary.decisions.keys() | champion.decisions.keys())
    }
    if mildest is not None:
        groups.pop(mildest, None)
        groups["alerts"] = tuple(sorted((canary.decisions.keys() | champion.decisions.keys()) - {mildest}))
    return [
        _decision_share(f"share of {name}", names, canary, champion, limits) for name, names in groups.items()
    ]


def _decision_share(
    name: str, decisions: Sequence[str], canary: Counts, champion: Counts, limits: Limits
) -> Check:
    hits = sum(canary.decisions.get(decision, 0) for decision in decisions)
    other_hits = sum(champion.decisions.get(decision, 0) for decision in decisions)
    share, other = hits / canary.requests, other_hits / champion.requests
    finding = Finding.PASS
    if abs(two_proportions(hits, canary.requests, other_hits, champion.requests)) > limits.z:
        low, high = sorted((share, other))
        if high - low > limits.decision_share and high > low * limits.decision_ratio:
            finding = Finding.ABORT
        elif high > low * limits.decision_ratio or high - low > limits.decision_share:
            finding = Finding.WATCH
    return Check(name, finding, share, other)


def _drift(canary: Counts, champion: Counts, reference: Sequence[int] | None, limits: Limits) -> Check:
    """Judge the distribution of scores.

    A better model may score otherwise than the champion; one that scores neither like the champion nor like
    itself in training is broken, or reads something that it was not trained on.
    """
    against_champion = psi(canary.scores, champion.scores)
    trained = None if reference is None else psi(canary.scores, dict(enumerate(reference)))
    worst = against_champion if trained is None else min(against_champion, trained)
    finding = Finding.PASS
    if worst > limits.psi_abort:
        finding = Finding.ABORT
    elif worst > limits.psi_watch:
        finding = Finding.WATCH
    detail = "index of stability against the champion"
    detail += "" if trained is None else f"; {trained:.3f} against its own training"
    return Check("score drift", finding, against_champion, limits.psi_abort, detail)


def _agreement(shadow: Agreement, limits: Limits) -> Check:
    share = shadow.agreed / shadow.scored
    finding = Finding.PASS
    if share < limits.agreement_abort:
        finding = Finding.ABORT
    elif share < limits.agreement_watch:
        finding = Finding.WATCH
    return Check("shadow agreement", finding, share, limits.agreement_watch)
