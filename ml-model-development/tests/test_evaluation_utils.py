"""Metrics against sklearn, brute force and numbers worked by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from common_ml_utils.errors import OneClassLabelsError
from common_ml_utils.evaluation_utils import (
    action_cost_summary,
    bootstrap_sums,
    calibration_table,
    card_precision_at,
    confusion_at,
    cost_of_actions,
    drop_known_compromised,
    expected_calibration_error,
    ordered_thresholds,
    paired_bootstrap,
    ranking_and_calibration,
    threshold_outcome,
    weighted_auc_roc,
    weighted_average_precision,
)

SAMPLES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0]), st.integers(0, 3)),
    min_size=2,
    max_size=30,
)


@given(SAMPLES)
def test_weighted_metrics_are_those_of_repeated_rows(rows: list[tuple[int, float, int]]) -> None:
    labels, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    repeated_labels, repeated_scores = labels.repeat(weights), scores.repeat(weights)
    assume(len(np.unique(repeated_labels)) == 2)
    weight_rows = weights[None, :].astype(float)
    auc = weighted_auc_roc(labels, scores, weight_rows)[0]
    precision = weighted_average_precision(labels, scores, weight_rows)[0]
    assert auc == pytest.approx(roc_auc_score(repeated_labels, repeated_scores))
    assert precision == pytest.approx(average_precision_score(repeated_labels, repeated_scores))


def test_a_draw_without_positives_measures_nothing() -> None:
    labels, scores, weights = np.array([0, 1]), np.array([0.1, 0.2]), np.array([[1.0, 0.0]])
    assert np.isnan(weighted_average_precision(labels, scores, weights))
    assert np.isnan(weighted_auc_roc(labels, scores, weights))


def test_brier_and_calibration_by_hand() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.0, 0.2, 0.4, 1.0])
    metrics = ranking_and_calibration(labels, scores)
    assert metrics["brier"] == pytest.approx((0 + 0.04 + 0.36 + 0) / 4)
    assert metrics["auc_roc"] == 1.0
    table = calibration_table(labels, scores, bins=2)
    assert table["predicted"].tolist() == pytest.approx([0.1, 0.7])
    assert table["observed"].tolist() == [0, 1]
    assert expected_calibration_error(labels, scores, bins=2) == pytest.approx((0.1 + 0.3) / 2)


def test_one_class_can_not_be_evaluated() -> None:
    with pytest.raises(OneClassLabelsError):
        ranking_and_calibration(np.zeros(5), np.linspace(0, 1, 5))


def test_the_four_outcomes_at_a_threshold() -> None:
    outcome = confusion_at(np.array([1, 0, 1, 0]), np.array([0.5, 0.5, 0.4, 0.1]), 0.5)
    assert outcome == {"true_positive": 1, "false_positive": 1, "false_negative": 1, "true_negative": 1}


def test_card_precision_counts_cards_once_a_day_and_drops_those_found() -> None:
    # Day 1: cards 1 (highest .9) and 2 (.8) are most suspect; 1 is compromised -> 1/2, and 1 is blocked.
    # Day 2: without card 1 (.99) the suspects are 3 and 2; both are compromised -> 2/2.
    days = np.array([1, 1, 1, 1, 2, 2, 2, 2])
    cards = np.array([1, 1, 2, 3, 1, 2, 3, 4])
    labels = np.array([0, 1, 0, 0, 1, 1, 1, 0])
    scores = np.array([0.9, 0.1, 0.8, 0.2, 0.99, 0.5, 0.6, 0.1])
    assert card_precision_at(days, cards, labels, scores, k=2) == pytest.approx((1 / 2 + 2 / 2) / 2)


def test_fewer_cards_than_k_still_divide_by_k() -> None:
    ones = np.ones(1, dtype=int)
    assert card_precision_at(ones, ones, ones, np.ones(1), k=100) == pytest.approx(0.01)


def test_known_compromised_cards_leave_the_test_once_their_delay_has_passed() -> None:
    known = pd.DataFrame({"customer_id": [1, 1], "day": [10, 30]})
    test = pd.DataFrame({"customer_id": [1, 1, 1, 2], "day": [17, 18, 40, 18]})
    left = drop_known_compromised(test, known, delay_days=7)
    assert left.to_dict("list") == {"customer_id": [1, 2], "day": [17, 18]}


COSTS = st.lists(
    st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7]), *[st.integers(0, 20).map(float)] * 3),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200)
@given(COSTS)
def test_thresholds_cost_no_more_than_any_other_pair(rows: list[tuple[float, float, float, float]]) -> None:
    scores, costs = np.array([row[0] for row in rows]), np.array([row[1:] for row in rows])
    first, second = ordered_thresholds(scores, costs)
    assert 0 <= first <= second <= 1
    cuts = [0.0, 0.2, 0.4, 0.6, 1.0]
    best = min(cost_of_actions(scores, costs, (a, b)) for a, b in product(cuts, cuts) if a <= b)
    assert cost_of_actions(scores, costs, (first, second)) == pytest.approx(best)


def bootstrap_of(challenger_noise: float, champion_noise: float) -> tuple[float, float]:
    rng = np.random.default_rng(3)
    labels = (rng.random(3000) < 0.1).astype(int)
    groups = np.arange(3000) // 3
    champion = labels + rng.normal(0, champion_noise, 3000)
    challenger = labels + rng.normal(0, challenger_noise, 3000)
    result = paired_bootstrap(
        labels, champion, challenger, groups, weighted_average_precision, resamples=200, seed=1
    )
    assert result.lower <= result.difference <= result.upper
    return result.probability_better, result.difference


def test_a_clearly_better_challenger_is_found_and_a_clearly_worse_one_too() -> None:
    assert bootstrap_of(0.4, 0.8)[0] == 1.0
    assert bootstrap_of(0.8, 0.4)[0] == 0.0


def test_equal_scores_are_never_better() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 100), rng.random(100)
    result = paired_bootstrap(
        labels, scores, scores.copy(), np.arange(100), weighted_auc_roc, resamples=100, seed=0
    )
    assert (result.difference, result.lower, result.upper, result.probability_better) == (0, 0, 0, 0)


def test_the_bootstrap_is_repeatable_and_draws_whole_groups() -> None:
    rng = np.random.default_rng(5)
    labels, a, b = rng.integers(0, 2, 90), rng.random(90), rng.random(90)
    by_row = paired_bootstrap(labels, a, b, np.arange(90), weighted_auc_roc, resamples=100, seed=2)
    again = paired_bootstrap(labels, a, b, np.arange(90), weighted_auc_roc, resamples=100, seed=2)
    assert by_row == again
    by_group = paired_bootstrap(
        np.tile(labels, 4),
        np.tile(a, 4),
        np.tile(b, 4),
        np.tile(np.arange(90), 4),
        weighted_auc_roc,
        resamples=100,
        seed=2,
    )
    assert by_group.upper - by_group.lower == pytest.approx(by_row.upper - by_row.lower)


def test_a_threshold_and_its_interval() -> None:
    labels = np.array([1, 1, 0, 0, 0, 1, 0, 0] * 20)
    scores = np.array([0.9, 0.4, 0.8, 0.2, 0.1, 0.7, 0.3, 0.0] * 20)
    outcome = threshold_outcome("look", 0.5, labels, scores, np.arange(160))
    assert (outcome.alerts, outcome.true_alerts) == (60, 40)
    figures = [outcome.alert_rate, outcome.precision, outcome.recall, outcome.false_positive_rate]
    for estimate, value in zip(figures, [60 / 160, 40 / 60, 40 / 60, 20 / 100], strict=True):
        assert estimate is not None
        assert estimate.value == pytest.approx(value)
        assert estimate.lower < value < estimate.upper
    never = threshold_outcome("never", 1.0, labels, scores, np.arange(160))
    assert (never.alerts, never.precision) == (0, None)


def test_costs_of_acting_against_one_action_for_all() -> None:
    scores = np.array([0.1, 0.5, 0.9])
    costs = np.array([[0.0, 1, 5], [4, 1, 5], [10, 6, 2]])
    summary = action_cost_summary(scores, costs, (0.3, 0.8), np.arange(3))
    assert (summary.no_action, summary.policy, summary.best_single_action) == (14, 0 + 1 + 2, 8)
    assert summary.saved_a_row is not None
    assert summary.saved_a_row.value == pytest.approx((14 - 3) / 3)


def test_resampled_sums_start_with_the_sums_themselves_and_draw_whole_groups() -> None:
    columns, groups = np.column_stack([np.ones(6), np.arange(6.0)]), np.array([0, 0, 0, 1, 1, 1])
    sums = bootstrap_sums(columns, groups, resamples=50)
    assert sums.shape == (51, 2)
    assert sums[0].tolist() == [6, 15]
    assert set(map(tuple, sums[1:])) == {(6, 6), (6, 15), (6, 24)}
