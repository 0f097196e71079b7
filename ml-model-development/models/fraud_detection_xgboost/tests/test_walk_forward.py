"""Weeks that follow each other without leaks, costs of policies, and the savings' interval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from src import walk_forward
from src.config import FraudCosts, FraudHyperparameters, FraudWindows
from src.walk_forward import (
    Payments,
    WeekResult,
    holdout_weeks,
    mean_and_interval,
    policy_costs,
    run_week,
    saving,
    tuning_weeks,
)

from common_ml_utils.errors import DataError, EmptyWindowError, OneClassLabelsError

FIRST_HOLDOUT = 60
WINDOWS = FraudWindows(training_days=20)
QUICK = FraudHyperparameters(n_estimators=10, max_bin=64)


@pytest.fixture(scope="module")
def data() -> Payments:
    """80 days; one feature tells frauds apart, noisily."""
    rng = np.random.default_rng(8)
    rows = 80 * 50
    labels = (rng.random(rows) < 0.1).astype(int)
    features = np.column_stack([labels + rng.normal(0, 0.7, rows), rng.random(rows)])
    days = np.sort(rng.integers(0, 80, rows))
    return Payments(features, days, rng.integers(0, 60, rows), rng.gamma(2, 40, rows), labels)


def changed(data: Payments, rows: np.ndarray) -> Payments:
    """The same payments, with the labels and features of `rows` turned round."""
    labels, features = data.labels.copy(), data.features.copy()
    labels[rows] = 1 - labels[rows]
    features[rows] = -features[rows]
    return Payments(features, data.days, data.customers, data.amounts, labels)


def test_measured_weeks_end_where_labels_are_known_and_tuning_ends_before_them() -> None:
    measured = holdout_weeks(182, 9)
    assert measured[-1] + 7 + 7 == 183
    assert np.diff(measured).tolist() == [7] * 8
    earlier = tuning_weeks(measured, 5)
    assert earlier[-1] + 7 + 7 == measured[0]
    assert not set(earlier) & set(measured)


def test_nothing_in_the_delay_or_after_the_holdout_changes_a_week(data: Payments) -> None:
    week = run_week(data, FIRST_HOLDOUT, QUICK, WINDOWS, FraudCosts())
    unseen = (data.days >= FIRST_HOLDOUT - 7) & (data.days < FIRST_HOLDOUT) | (data.days >= FIRST_HOLDOUT + 7)
    again = run_week(changed(data, np.flatnonzero(unseen)), FIRST_HOLDOUT, QUICK, WINDOWS, FraudCosts())
    np.testing.assert_array_equal(again.scores, week.scores)
    assert again.thresholds == week.thresholds


def test_the_holdouts_labels_change_neither_scores_nor_thresholds(data: Payments) -> None:
    week = run_week(data, FIRST_HOLDOUT, QUICK, WINDOWS, FraudCosts())
    labels = data.labels.copy()
    labels[week.rows] = 1 - labels[week.rows]
    turned = Payments(data.features, data.days, data.customers, data.amounts, labels)
    again = run_week(turned, FIRST_HOLDOUT, QUICK, WINDOWS, FraudCosts())
    np.testing.assert_array_equal(again.scores, week.scores)
    assert again.thresholds == week.thresholds
    assert again.metrics["auc_roc"] == pytest.approx(1 - week.metrics["auc_roc"])


def test_the_training_rows_do_change_the_scores(data: Payments) -> None:
    week = run_week(data, FIRST_HOLDOUT, QUICK, WINDOWS, FraudCosts())
    training = np.flatnonzero((data.days >= FIRST_HOLDOUT - 7 - 20) & (data.days < FIRST_HOLDOUT - 7))
    again = run_week(changed(data, training), FIRST_HOLDOUT, QUICK, WINDOWS, FraudCosts())
    assert (again.scores != week.scores).any()


def test_too_few_days_and_one_class_are_refused(data: Payments) -> None:
    with pytest.raises(EmptyWindowError, match="day -1"):
        run_week(data, 26, QUICK, WINDOWS, FraudCosts())
    clean = Payments(data.features, data.days, data.customers, data.amounts, np.zeros_like(data.labels))
    with pytest.raises(OneClassLabelsError):
        run_week(clean, FIRST_HOLDOUT, QUICK, WINDOWS, FraudCosts())


def test_policies_by_hand() -> None:
    data = Payments(
        np.zeros((4, 1)), np.zeros(4), np.arange(4), np.array([100.0, 100, 50, 50]), np.array([1, 0, 1, 0])
    )
    week = WeekResult(0, {}, (0.2, 0.8), np.arange(4), np.array([0.9, 0.85, 0.6, 0.1]))
    paid = policy_costs(data, [week], FraudCosts(review=3, review_catch_rate=0.9, decline_good=20))
    assert paid["approve all"].tolist() == [100, 0, 50, 0]
    assert paid["decline at 0.5"].tolist() == [0, 20, 0, 0]
    assert paid["cost-aware"].tolist() == pytest.approx([0, 20, 3 + 5, 0])


def test_the_saving_lies_in_its_interval_and_nothing_saved_is_nothing() -> None:
    rng = np.random.default_rng(0)
    cards, without = rng.integers(0, 40, 500), rng.random(500)
    share, lower, upper = saving(cards, without, without * rng.random(500))
    assert 0 < lower < share < upper < 1
    assert saving(cards, without, without) == (0.0, 0.0, 0.0)


def test_the_interval_of_a_mean_is_students() -> None:
    mean, lower, upper = mean_and_interval([1.0, 2.0, 3.0])
    assert (mean, upper - mean) == (2.0, pytest.approx(4.302652729911275 / np.sqrt(3)))
    assert mean - lower == pytest.approx(upper - mean)


def test_the_command_reports_weeks_means_savings_and_what_was_tried(
    data: Payments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk_forward, "read_payments", lambda folder: ("made up", data))
    monkeypatch.setattr(walk_forward, "FraudHyperparameters", lambda **changes: QUICK)
    monkeypatch.setattr(walk_forward, "FraudWindows", lambda **changes: WINDOWS)
    monkeypatch.setattr(walk_forward, "CANDIDATES", ({}, {"max_depth": 2}))
    monkeypatch.setattr(walk_forward, "MEASURED_WEEKS", 3)
    monkeypatch.setattr(walk_forward, "TUNING_WEEKS", 1)
    arguments = ["--landing", str(tmp_path), "--reports", str(tmp_path), "--tune"]
    assert walk_forward.main(arguments) == 0
    document = json.loads((tmp_path / "walk_forward.json").read_text())
    assert [week["first_day"] for week in document["weeks"]] == [52, 59, 66]
    assert len(document["tried"]) == 2
    by_name = {line["name"]: line for line in document["results"]}
    mean = np.mean([week["average_precision"] for week in document["weeks"]])
    assert by_name["average_precision, mean of 3 weeks"]["value"] == pytest.approx(mean)
    assert document["savings"]["approve all"][0] == pytest.approx(
        1 - document["cost_per_thousand"]["cost-aware"] / document["cost_per_thousand"]["approve all"]
    )
    assert (tmp_path / "walk_forward.html").read_text().count("data:image/png") == 3


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert walk_forward.main(["--landing", str(tmp_path / "none"), "--reports", str(tmp_path)]) == 1
    assert DataError.__name__ in capsys.readouterr().err
