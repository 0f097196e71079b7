"""Cross-validation, calibration and value: what is scored was not seen, and money adds up by hand."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from conftest import FakeFeatureStore, make_subscribers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from src import cross_validation, csv_schema, exploration, train, value
from src.config import ChurnFolds, ChurnHyperparameters, ChurnValues
from src.cross_validation import Subject, intervals, measure, out_of_fold
from src.train import churn_action_costs
from src.value import ACTIONS, chosen_thresholds, thresholds_by_values, value_curve

from common_ml_utils.evaluation_utils import cost_of_actions

VALUES = ChurnValues(subscriber_value=100, contact_cost=1, contact_keeps=0.1, offer_cost=11, offer_keeps=0.5)


def subject(frame: pd.DataFrame) -> Subject:
    parameters = ChurnHyperparameters(n_estimators=9, n_jobs=1)
    service = FakeFeatureStore(frame).published.service
    return Subject(frame, service, "churned", parameters, ChurnValues(), ChurnFolds(folds=3))


def test_no_row_is_scored_by_a_model_that_saw_it(subscribers: pd.DataFrame) -> None:
    seen: list[set[int]] = []

    def scorer(fit: pd.DataFrame, unseen: pd.DataFrame) -> np.ndarray:
        seen.append(set(fit["subscriber_id"]) & set(unseen["subscriber_id"]))
        return unseen["subscriber_id"].to_numpy(dtype=float)

    scores = out_of_fold(subscribers, "churned", ChurnFolds(folds=4), scorer)
    assert seen == [set()] * 4
    assert scores.tolist() == subscribers["subscriber_id"].tolist()


def test_the_nested_run_chooses_and_calibrates_on_fit_rows_alone(
    subscribers: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of the rows to be scored are spoiled: the scores must stay the same."""
    given_to: list[frozenset[int]] = []
    real = cross_validation.platt_scaled

    def spy(known: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        given_to.append(frozenset((len(known), len(labels))))
        return real(known, labels, scores)

    monkeypatch.setattr(cross_validation, "platt_scaled", spy)
    found = cross_validation.nested(subject(subscribers.head(450)))
    assert given_to == [frozenset({300})] * 3
    assert not np.isnan([found.scores, found.platt, found.isotonic]).any()
    assert len(found.chosen) == 3
    assert set(found.chosen) <= set(cross_validation.candidates(ChurnHyperparameters()))


def test_a_report_stands_the_recipe_beside_logistic_regression(tmp_path: Path) -> None:
    measured = measure(subject(make_subscribers(600)), repeats=2, with_nested=False, resamples=40)
    measured.write(tmp_path, "Churn", targets=False)
    report = json.loads((tmp_path / "cross_validation.json").read_text())
    assert report["rows"] == 600
    assert report["recipe"]["auc_roc"]["mean"] > 0.65
    assert report["recipe"]["auc_roc"]["lowest"] < report["recipe"]["auc_roc"]["highest"]
    low, high = report["logistic_regression"]["interval_95"]["auc_roc"]
    assert low < report["logistic_regression"]["auc_roc"]["mean"] < high
    assert report["results"][0]["peer"] == "logistic regression"
    page = (tmp_path / "cross_validation.html").read_text()
    assert page.count("data:image/png") == 2
    assert "Value in USD per 1,000 subscribers" in page


def test_an_interval_holds_the_value_of_a_known_score() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(1500)
    labels = (rng.random(1500) < truth).astype(int)
    found = intervals(labels, truth, resamples=100)
    assert found["auc_roc"][0] < 5 / 6 < found["auc_roc"][1]  # of a uniform, calibrated score
    assert found["calibration_error"][1] < 0.06
    shifted = intervals(labels, np.clip(truth + 0.2, 0, 1), resamples=100)
    assert shifted["calibration_error"][0] > 0.12


def test_thresholds_stand_where_an_action_pays() -> None:
    assert thresholds_by_values(VALUES) == (pytest.approx(0.1), pytest.approx(0.25))
    free_offer = VALUES.model_copy(update={"offer_cost": 0.5})
    assert thresholds_by_values(free_offer) == (pytest.approx(0.01), pytest.approx(0.01))
    useless = VALUES.model_copy(update={"contact_keeps": 0.0, "offer_keeps": 0.0})
    assert thresholds_by_values(useless) == (1.0, 1.0)


@given(
    cost=st.tuples(st.floats(0, 200), st.floats(0, 200)).map(sorted),
    keeps=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    score=st.floats(0, 1),
)
def test_the_action_by_the_prices_is_never_worse_than_another(
    cost: list[float], keeps: list[float], score: float
) -> None:
    values = ChurnValues(
        contact_cost=cost[0], contact_keeps=keeps[0], offer_cost=cost[1], offer_keeps=keeps[1]
    )
    expected = (1 - score) * churn_action_costs(np.array([0]), values)[0]
    expected += score * churn_action_costs(np.array([1]), values)[0]
    contact, offer = thresholds_by_values(values)
    assert contact <= offer
    taken = int(score > contact) + int(score > offer)
    if taken == 0:
        assert expected[0] <= expected[1:].min() + 1e-6
    if taken == 2:
        assert expected[2] <= expected[:2].min() + 1e-6


def test_prices_by_which_the_thresholds_would_not_rise_are_refused() -> None:
    with pytest.raises(ValidationError, match="an offer must cost and keep at least what a contact does"):
        ChurnValues(contact_cost=10, offer_cost=5)


def test_value_is_what_the_costs_say() -> None:
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.3, 0.1])
    curve = value_curve(scores, labels, VALUES)
    # Contacting costs 1 and keeps a tenth of 100; an offer costs 11 and keeps half; per 1,000 = x 250.
    assert curve.policies["nobody"] == 0
    assert curve.policies["contact everybody"] == pytest.approx((9 - 1 + 9 - 1) * 250)
    assert curve.policies["offer everybody"] == pytest.approx((39 - 11 + 39 - 11) * 250)
    assert curve.policies["offer at 0.5"] == pytest.approx((39 - 11) * 250)
    assert curve.policies["knowing who leaves"] == pytest.approx(2 * 39 * 250)
    assert curve.by_action["offer"][0] == pytest.approx(curve.policies["offer everybody"])
    assert curve.by_action["offer"][-1] == 0


def test_chosen_thresholds_cost_least_and_lie_in_their_interval() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(2000)
    labels = (rng.random(2000) < scores).astype(int)
    chosen = chosen_thresholds(scores, labels, VALUES, resamples=60)
    costs = churn_action_costs(labels, VALUES)
    cuts = tuple(chosen.by_action[action].threshold for action in ACTIONS)
    assert cost_of_actions(scores, costs, cuts) <= min(
        cost_of_actions(scores, costs, (low, high)) for low in (0.05, 0.1, 0.2) for high in (0.25, 0.4, 0.6)
    )
    for threshold in chosen.by_action.values():
        assert threshold.lower <= threshold.threshold <= threshold.upper
        assert threshold.lower <= threshold.by_values <= threshold.upper


@pytest.mark.parametrize(
    "module", [csv_schema, exploration, train, value], ids=lambda module: module.__name__
)
def test_doctests(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert (result.attempted > 0, result.failed) == (True, 0)
