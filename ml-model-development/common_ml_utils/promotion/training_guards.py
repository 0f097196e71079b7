"""Guards of what a challenger was trained on and is served with: freshness, integrity, leaks, parity, speed.

Pure functions: frames and figures in, findings out. The gate fetches; docs/promotion.md explains the limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from common_ml_utils.data_schemas.training_data_contract import PublishedContract, VectorFeature
from common_ml_utils.promotion.guards import ASK, OK, REFUSE, Finding, Outcome
from common_ml_utils.release_bundle import TrainingInterval
from common_ml_utils.settings import GateSettings

RELATIVE = 1e-9  # a sum may be added up in another order
SMALLEST_SHARE = 1e-4  # an empty bin of the stability index
REFUSED_SHIFT = 4  # times the limit
NAMED = 3  # how many of many are named


def staleness_finding(
    training: TrainingInterval, labels_until: datetime, delay: timedelta, gate: GateSettings
) -> Finding:
    """Refuse a training whose end lies too far back from what is known now.

    Right after a training, known labels reach to the holdout's end, and the training ends one label delay
    before the holdout. `labels_until` is the newest event whose label is known. Up to half the limit passes.
    """
    behind = max(labels_until - training.holdout_end, timedelta())
    gap = max(training.holdout_start - training.end - delay, timedelta())
    days = (behind + gap) / timedelta(days=1)
    limit = gate.staleness_days
    outcome: Outcome = OK if days <= limit / 2 else ASK if days <= limit else REFUSE
    word = "fresh" if outcome == OK else "stale training window"
    message = (
        f"{word}: labels are known up to {labels_until:%Y-%m-%d}, {days:.1f} days further than a training "
        f"that ends on {training.end:%Y-%m-%d} and a holdout up to {training.holdout_end:%Y-%m-%d} use"
    )
    return Finding("staleness", outcome, message, days, limit, "days")


def signature_finding(trained: PublishedContract, live: PublishedContract) -> Finding:
    """Refuse a model whose vector is not the one its feature service gives now: columns, types, order.

    A contract that differs elsewhere (an expression, a source) asks: the same names may mean something else.
    """
    name = live.service.name
    if trained.sha256 == live.sha256:
        message = f"the {len(live.service.features)} columns of {name}, in type and order"
        return Finding("signature", OK, message)
    old, new = ([(f.name, f.type) for f in each.service.features] for each in (trained, live))
    if old != new:
        absent = [f"{column} ({kind})" for column, kind in old if (column, kind) not in new]
        added = [f"{column} ({kind})" for column, kind in new if (column, kind) not in old]
        differs = f"trained on {absent}, served {added}" if absent or added else "the order differs"
        return Finding("signature", REFUSE, f"{name} does not give the model's vector: {differs}")
    message = f"{name} was published anew since the training: the same columns may mean something else"
    return Finding("signature", ASK, message)


def parity_finding(report: Mapping[str, Any] | None, feature_service: str) -> Finding:
    """Refuse while served features differ from recomputed ones; one never measured is only said."""
    if report is None:
        message = f"served features of {feature_service} were never compared with recomputed ones"
        return Finding("parity", OK, message)
    measured = f"{report['vectors']} vectors compared on {str(report['date'])[:10]}"
    mismatches, missing = int(report["mismatches"]), int(report["not_recomputed"])
    if mismatches:
        worst = ", ".join(sorted(report.get("by_feature", {}))[:NAMED])
        message = f"{mismatches} served values of {feature_service} differ from recomputed ones ({worst})"
        return Finding("parity", REFUSE, f"{message}; {measured}", mismatches, 0, "values")
    if missing:
        message = f"{missing} served vectors of {feature_service} could not be recomputed; {measured}"
        return Finding("parity", ASK, message, missing, 0, "vectors")
    return Finding("parity", OK, f"every served value is the recomputed one; {measured}", 0, 0, "values")


def latency_finding(challenger_us: float, champion_us: float | None, gate: GateSettings) -> Finding:
    """Refuse a median one-row time above the limit; ask when it grew by more than the ratio.

    Below a tenth of the limit growth is nobody's concern.
    """
    limit, shown = gate.latency_limit_us, f"one row takes {challenger_us:.0f} us at the median"
    if challenger_us > limit:
        message = f"{shown}, at most {limit:.0f} are allowed"
        return Finding("latency", REFUSE, message, challenger_us, limit, "us")
    if champion_us is None:
        return Finding("latency", OK, shown, challenger_us, limit, "us")
    shown += f", the champion's {champion_us:.0f} us"
    grown = challenger_us > gate.latency_ratio * champion_us and challenger_us > limit / 10
    message = f"{shown}: more than {gate.latency_ratio:g} times" if grown else shown
    return Finding("latency", ASK if grown else OK, message, challenger_us, limit, "us")


# --- the training set ---------------------------------------------------------------------------------------


def labels_finding(trained: pd.Series, known: pd.Series, gate: GateSettings) -> Finding:
    """Compare every training label with the label store; both are 0 or 1, indexed by the row's key."""
    there = trained.index.isin(known.index)
    lost = int((~there).sum())
    differ = int((trained[there] != known.reindex(trained.index[there])).sum())
    share, rows = (differ + lost) / len(trained), len(trained)
    shown = f"{differ + lost} of {rows} training labels ({share:.2%}) are not those of the label store"
    if lost:
        shown += f", {lost} of them unknown there"
    limit = gate.label_tolerance
    if not share:
        return Finding("labels", OK, f"all {rows} training labels are those of the label store", 0.0, limit)
    return Finding("labels", REFUSE if share > limit else ASK, shown, share, limit)


def values_finding(
    trained: pd.DataFrame, fetched: pd.DataFrame, features: Sequence[VectorFeature], gate: GateSettings
) -> Finding:
    """Compare sampled training rows value for value with the same rows fetched again, both indexed by key."""
    again = fetched.reindex(trained.index)
    lost = int((~trained.index.isin(fetched.index)).sum())
    shares = {f.name: _share_different(trained[f.name], again[f.name], f) for f in features}
    differing = {name: share for name, share in shares.items() if share > 0}
    limit, rows = gate.value_tolerance, len(trained)
    if not differing:
        message = (
            f"{rows} training rows were fetched again: every value of {len(features)} features is the same"
        )
        return Finding("training values", OK, message, 0.0, limit)
    worst = max(differing.values())
    named = sorted(differing, key=lambda name: -differing[name])
    listed = ", ".join(f"{name} in {differing[name]:.1%}" for name in named[:NAMED])
    message = f"training values are not those of the feature store: {listed} of {rows} rows fetched again"
    if len(named) > NAMED:
        message += f", and {len(named) - NAMED} more features"
    if lost:
        message += f"; {lost} rows are not there"
    return Finding("training values", REFUSE if worst > limit else ASK, message, worst, limit)


def agreement_finding(
    training: TrainingInterval,
    rows: int,
    positives: int,
    stated: Mapping[str, Mapping[str, Any]],
    counted: Mapping[str, Mapping[str, Any]],
) -> Finding:
    """Refuse a bundle that does not state what its training set holds: rows, positives, distributions.

    `stated` are the bundle's reference statistics, `counted` the same of the training set.
    """
    problems = []
    if (training.rows, training.positives) != (rows, positives):
        problems.append(
            f"the bundle says {training.rows} rows and {training.positives} positives, the training set has "
            f"{rows} and {positives}"
        )
    differing = [name for name, statistics in counted.items() if stated.get(name) != statistics]
    if differing:
        listed = ", ".join(differing[:NAMED])
        problems.append(f"the bundle was made from other values of {len(differing)} features: {listed}")
    if problems:
        return Finding("training set", REFUSE, "; ".join(problems))
    return Finding("training set", OK, f"{rows} rows, {positives} positives and distributions as stated")


@dataclass(frozen=True)
class Leak:
    """How well one feature alone ranks the labels: AUC ROC, either way round."""

    feature: str
    auc: float


def single_feature_aucs(
    training: pd.DataFrame, labels: np.ndarray, features: Sequence[VectorFeature]
) -> list[Leak]:
    """Return every feature's own AUC ROC, best first; a category counts as its rate of positives."""
    found = []
    for feature in features:
        column = training[feature.name]
        if feature.is_categorical:
            rates = pd.Series(labels).groupby(column.fillna("").to_numpy()).mean()
            values = column.fillna("").map(rates).to_numpy(dtype=float)
        else:
            values = np.nan_to_num(column.to_numpy(dtype=float, na_value=np.nan), nan=-np.finfo(float).max)
        auc = float(roc_auc_score(labels, values))
        found.append(Leak(feature.name, max(auc, 1 - auc)))
    return sorted(found, key=lambda leak: -leak.auc)


def leak_finding(leaks: Sequence[Leak], gate: GateSettings) -> Finding:
    """Ask about a feature that alone nearly gives the label, refuse one that gives it."""
    best, limit = leaks[0], gate.leak_auc
    shown = f"{best.feature} alone ranks the labels with AUC ROC {best.auc:.3f}"
    if best.auc <= limit:
        return Finding("leak", OK, f"no feature gives the label away: {shown}", best.auc, limit)
    outcome = REFUSE if best.auc > (1 + limit) / 2 else ASK
    return Finding("leak", outcome, f"a leaked column: {shown}", best.auc, limit)


def stability_index(expected: Mapping[str, Any], values: pd.Series) -> float:
    """Return the population stability index of values against reference statistics; nulls are a bin.

    Sum over bins of (a - e) ln(a / e), the shares of both; below .1 is noise, above .25 a shift. Source:
    Siddiqi, Credit Risk Scorecards (2006).
    """
    if "edges" in expected:
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        known = numbers[~np.isnan(numbers)]
        places = np.searchsorted(expected["edges"], known, side="right")
        counts = np.bincount(places, minlength=len(expected["counts"]))
        nulls = len(numbers) - len(known)
    else:
        counted = values.value_counts()
        counts = np.array([int(counted.get(category, 0)) for category in expected["categories"]])
        nulls = len(values) - int(counts.sum())  # null or a category never seen
    old = np.append(np.asarray(expected["counts"], dtype=float), expected["null_count"])
    new = np.append(counts.astype(float), nulls)
    old, new = (np.maximum(each / max(each.sum(), 1), SMALLEST_SHARE) for each in (old, new))
    return float(((new - old) * np.log(new / old)).sum())


def shift_finding(
    training: pd.DataFrame,
    champion: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    gate: GateSettings,
) -> Finding:
    """Ask when a training feature is distributed unlike the champion's; refuse far beyond.

    A service may keep its contract while its tables change: a unit, a factor, a join that went wrong.
    """
    indexes = {name: stability_index(champion[name], training[name]) for name in names if name in champion}
    worst = max(indexes, key=lambda name: indexes[name])
    value, limit = indexes[worst], gate.shift_limit
    shown = f"{worst} has a stability index of {value:.2f} against the champion's training"
    if value <= limit:
        return Finding("shift", OK, f"features are distributed as before: {shown}", value, limit)
    outcome = REFUSE if value > REFUSED_SHIFT * limit else ASK
    return Finding("shift", outcome, f"a feature changed: {shown}", value, limit)


def _share_different(trained: pd.Series, again: pd.Series, feature: VectorFeature) -> float:
    """Return the share of rows with another value; null equals null."""
    if feature.is_categorical:
        same = (trained == again) | (trained.isna() & again.isna())
        return float(1 - same.mean())
    left, right = (each.to_numpy(dtype=float, na_value=np.nan) for each in (trained, again))
    return float(1 - np.isclose(left, right, rtol=RELATIVE, atol=0, equal_nan=True).mean())
