"""Quality on matured labels, against definitions and a brute-force count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advanced_monitoring_scripts.concept_drift import auc_roc, average_precision, qualities

cases = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(1, 3)), min_size=2, max_size=40
).filter(lambda rows: 0 < sum(label for label, _, _ in rows) < len(rows))


@given(cases)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows):
    labels, scores, weights = (np.array(column, float) for column in zip(*rows, strict=True))
    won = total = 0.0
    for positive in np.flatnonzero(labels == 1):
        for negative in np.flatnonzero(labels == 0):
            pair = weights[positive] * weights[negative]
            total += pair
            won += pair * (
                0.5 if scores[positive] == scores[negative] else scores[positive] > scores[negative]
            )
    assert auc_roc(labels, scores, weights[None, :])[0] == pytest.approx(won / total)


@given(cases)
def test_average_precision_sums_precision_over_the_recall_gained(rows):
    labels, scores, _ = (np.array(column, float) for column in zip(*rows, strict=True))
    expected, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        now = labels[chosen].sum() / labels.sum()
        expected += (now - recall) * labels[chosen].mean()
        recall = now
    assert average_precision(labels, scores, np.ones((1, len(labels))))[0] == pytest.approx(expected)


@given(cases)
def test_a_weight_is_a_row_repeated(rows):
    labels, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    repeated = np.repeat(np.arange(len(labels)), weights)
    ones = np.ones((1, len(repeated)))
    for metric in (auc_roc, average_precision):
        assert metric(labels, scores, weights[None, :].astype(float))[0] == pytest.approx(
            metric(labels[repeated], scores[repeated], ones)[0]
        )


def test_the_interval_holds_the_value_and_narrows_with_more_customers():
    rng = np.random.default_rng(1)
    widths = []
    for size in (500, 8000):
        labels = rng.integers(0, 2, size)
        scores = np.clip(labels * 0.3 + rng.uniform(0, 0.7, size), 0, 1)
        (quality,) = qualities(labels, scores, np.arange(size), {"auc_roc": 0.9}, 0.95)
        assert quality.lower <= quality.current <= quality.upper
        assert quality.loss == pytest.approx(0.9 - quality.current)
        widths.append(quality.upper - quality.lower)
    assert widths[1] < widths[0] / 2


def test_rows_of_one_customer_do_not_count_as_independent():
    rng = np.random.default_rng(2)
    labels = np.repeat(rng.integers(0, 2, 50), 40)
    scores = np.repeat(rng.uniform(0, 1, 50) * 0.5 + labels[::40] * 0.3, 40)
    holdout = {"auc_roc": 0.9}
    (apart,) = qualities(labels, scores, np.arange(len(labels)), holdout, 0.95)
    (together,) = qualities(labels, scores, np.repeat(np.arange(50), 40), holdout, 0.95)
    assert together.upper - together.lower > 2 * (apart.upper - apart.lower)


def test_only_metrics_of_the_holdout_are_compared():
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.4, 0.6])
    assert [q.metric for q in qualities(labels, scores, np.arange(4), {"average_precision": 1.0}, 0.9)] == [
        "average_precision"
    ]
