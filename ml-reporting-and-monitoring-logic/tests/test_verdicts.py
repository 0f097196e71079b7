"""Which differences count."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advanced_monitoring_scripts.distribution_drift import CategoricalReference, NumericReference
from advanced_monitoring_scripts.matured_labels import LabelledScores, join_labels
from advanced_monitoring_scripts.scored_rows import ScoredRows
from advanced_monitoring_scripts.settings import DriftThresholds
from advanced_monitoring_scripts.verdicts import (
    ConceptFinding,
    Finding,
    Verdict,
    judge_column,
    judge_columns,
    judge_concept,
    overall,
    worst,
)
from tests.bundles import numeric, read_bundle, sample

THRESHOLDS = DriftThresholds()
DAY = date(2026, 11, 20)


def scored(data: dict[str, np.ndarray], days: int = 7) -> ScoredRows:
    size = len(data["score"])
    return ScoredRows(
        days=np.array([DAY - timedelta(days=i % days) for i in range(size)], dtype="datetime64[D]"),
        keys=np.array([str(i) for i in range(size)], dtype=object),
        groups=np.array([str(i % 500) for i in range(size)]),
        scores=data["score"],
        features={name: values for name, values in data.items() if name != "score"},
        left_out={},
    )


def verdicts(findings: list[Finding]) -> dict[str, Verdict]:
    return {finding.name: finding.verdict for finding in findings}


def test_days_like_the_training_are_ok(tmp_path):
    bundle = read_bundle(tmp_path)
    findings = judge_columns(bundle, scored(sample(7000, 1)), THRESHOLDS)
    assert set(verdicts(findings).values()) == {Verdict.OK}
    assert findings[0].name == "score", "the score comes first"


def test_a_shifted_feature_is_found_and_named(tmp_path):
    bundle = read_bundle(tmp_path)
    findings = judge_columns(bundle, scored(sample(7000, 1, amounts=100.0)), THRESHOLDS)
    assert verdicts(findings) == {
        "score": Verdict.OK,
        "tx_amount": Verdict.ALERT,
        "tx_is_weekend": Verdict.OK,
        "terminal_fraud_risk_7d": Verdict.OK,
    }
    assert "PSI" in next(f for f in findings if f.name == "tx_amount").reasons[0]
    assert overall(findings, ConceptFinding(Verdict.NOT_JUDGED, [])) is Verdict.ALERT


def test_a_calendar_feature_is_not_judged_on_part_of_a_week(tmp_path):
    bundle = read_bundle(tmp_path)
    data = sample(3000, 1) | {"tx_is_weekend": np.zeros(3000)}
    finding = next(
        f for f in judge_columns(bundle, scored(data, days=1), THRESHOLDS) if f.name == "tx_is_weekend"
    )
    assert finding.verdict is Verdict.NOT_JUDGED
    assert "calendar" in finding.reasons[0]
    whole_week = judge_columns(bundle, scored(data, days=7), THRESHOLDS)
    assert verdicts(whole_week)["tx_is_weekend"] is Verdict.ALERT


def test_few_rows_are_not_judged_and_the_whole_is_not_called_ok(tmp_path):
    bundle = read_bundle(tmp_path)
    findings = judge_columns(bundle, scored(sample(60, 1)), THRESHOLDS)
    assert set(verdicts(findings).values()) == {Verdict.NOT_JUDGED}
    assert overall(findings, ConceptFinding(Verdict.OK, [])) is Verdict.NOT_JUDGED


@pytest.mark.parametrize("seed", range(20))
def test_a_small_sample_of_the_same_distribution_raises_no_false_alarm(seed):
    training = sample(50_000, 0)["score"]
    statistics = numeric(training)
    reference = NumericReference(np.array(statistics["edges"]), np.array(statistics["counts"], float), 0)
    finding = judge_column("score", reference, sample(120, 100 + seed)["score"], THRESHOLDS)
    assert finding.verdict is Verdict.OK


def test_nulls_that_appear_are_found_even_when_the_rest_is_unchanged():
    statistics = numeric(sample(50_000, 0)["tx_amount"])
    reference = NumericReference(np.array(statistics["edges"]), np.array(statistics["counts"], float), 0)
    values = sample(5000, 1)["tx_amount"]
    values[::50] = np.nan
    finding = judge_column("tx_amount", reference, values, THRESHOLDS)
    assert finding.verdict is Verdict.WARN
    assert finding.reasons == ["nulls 0.0% -> 2.0%"]
    values[:] = np.nan
    all_null = judge_column("tx_amount", reference, values, THRESHOLDS)
    assert (all_null.verdict, all_null.distance) == (Verdict.ALERT, None)


def test_unknown_categories_are_found():
    reference = CategoricalReference(("a", "b"), np.array([500.0, 500.0]), 0)
    values = np.array((["a", "b"] * 9 + ["new", "new"]) * 20, dtype=object)
    finding = judge_column("plan", reference, values, THRESHOLDS)
    assert finding.verdict is Verdict.ALERT
    assert any("unknown categories" in reason for reason in finding.reasons)


def labelled(size: int, separation: float, seed: int = 0) -> LabelledScores:
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=size) < 0.05).astype(int)
    scores = np.clip(rng.normal(0.3 + separation * labels, 0.1), 0, 1)
    return LabelledScores(labels, scores, np.arange(size), DAY, DAY)


def test_quality_like_the_holdouts_is_ok_and_a_loss_is_graded():
    good = judge_concept(labelled(20_000, 0.2), {"auc_roc": 0.92}, THRESHOLDS)
    assert good.verdict is Verdict.OK
    lost = judge_concept(labelled(20_000, 0.1), {"auc_roc": 0.92}, THRESHOLDS)
    assert lost.verdict is Verdict.ALERT
    assert "the holdout had 0.920" in lost.reasons[0]


def test_a_loss_within_the_interval_is_chance():
    small = judge_concept(labelled(900, 0.18, seed=3), {"auc_roc": 0.92}, THRESHOLDS)
    (quality,) = small.qualities
    assert quality.lower < quality.current <= quality.upper
    assert (small.verdict is Verdict.OK) == (quality.upper >= 0.92 or quality.loss < THRESHOLDS.auc_roc_warn)


@pytest.mark.parametrize(
    ("scores", "holdout", "reason"),
    [
        (LabelledScores(np.array([]), np.array([]), np.array([]), None, None), {"auc_roc": 0.9}, "known yet"),
        (labelled(200, 0.2), {"auc_roc": 0.9}, "positives among 200"),
        (labelled(5000, 0.2), {}, "no holdout metrics"),
    ],
)
def test_what_can_not_be_judged_says_why(scores, holdout, reason):
    finding = judge_concept(scores, holdout, THRESHOLDS)
    assert finding.verdict is Verdict.NOT_JUDGED
    assert reason in finding.reasons[0]


def test_labels_meet_their_scores_by_transaction():
    rows = scored(sample(6, 1))
    joined = join_labels(rows, np.array([1, 3, 9]), np.array([1, 0, 1]))
    assert joined.labels.tolist() == [1, 0]
    assert joined.scores.tolist() == [rows.scores[1], rows.scores[3]]
    assert joined.groups.tolist() == ["1", "3"]
    nothing = join_labels(rows, np.array([], dtype=np.int64), np.array([], dtype=np.int64))
    assert (len(nothing.labels), nothing.first_day) == (0, None)


@given(st.lists(st.sampled_from(list(Verdict))))
def test_the_worst_verdict_is_one_of_them_and_none_is_worse(given_verdicts):
    order = list(Verdict)
    result = worst(given_verdicts)
    assert result in given_verdicts or (not given_verdicts and result is Verdict.NOT_JUDGED)
    assert all(order.index(verdict) <= order.index(result) for verdict in given_verdicts)
