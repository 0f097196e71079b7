"""Each guard passes what is sound, asks in the grey band and refuses beyond it, with figure and limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_training import FEATURES, contract_of
from sklearn.metrics import average_precision_score, roc_auc_score

from common_ml_utils.drift_reference import numeric_reference
from common_ml_utils.errors import DataError, EmptyWindowError
from common_ml_utils.promotion.evaluation import (
    SliceEvaluation,
    classifier_evaluation,
    compare,
    comparison_of,
    mean_evaluation,
)
from common_ml_utils.promotion.guards import (
    ASK,
    OK,
    REFUSE,
    Outcome,
    calibration_finding,
    comparison_finding,
    floor_finding,
    slice_findings,
)
from common_ml_utils.promotion.training_guards import (
    Leak,
    agreement_finding,
    labels_finding,
    latency_finding,
    leak_finding,
    parity_finding,
    shift_finding,
    signature_finding,
    single_feature_aucs,
    stability_index,
    staleness_finding,
    values_finding,
)
from common_ml_utils.release_bundle import TrainingInterval
from common_ml_utils.settings import GateSettings

GATE = GateSettings(metric="auc_roc", floor=0.6, ceiling=0.95)
SERVICE = contract_of().service
RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 0.01, 1000)


# --- comparison


@pytest.mark.parametrize(("value", "outcome"), [(0.59, REFUSE), (0.6, OK), (0.95, OK), (0.96, ASK)])
def test_a_metric_has_a_floor_and_a_ceiling(value: float, outcome: Outcome) -> None:
    assert floor_finding(value, GATE).outcome == outcome


@pytest.mark.parametrize(
    ("difference", "outcome", "word"),
    [
        (0.03, OK, "better"),
        (0.0, OK, "not worse"),
        (-0.005, OK, "not worse"),
        (-0.015, ASK, "undecided"),
        (-0.03, ASK, "undecided"),
        (-0.04, REFUSE, "worse"),
    ],
)
def test_not_worse_is_shown_within_the_margin(difference: float, outcome: Outcome, word: str) -> None:
    sample = difference + NOISE
    found = comparison_finding(comparison_of(0.8, 0.8 + difference, sample, 0.02), GATE)
    assert (found.outcome, found.limit) == (outcome, -0.02)
    assert word in found.message.split(": auc_roc")[0]


def test_the_interval_holds_the_central_95_percent() -> None:
    compared = comparison_of(0.5, 0.6, np.linspace(0, 1, 1001), 0.02)
    assert (compared.lower, compared.upper) == pytest.approx((0.025, 0.975))
    with pytest.raises(DataError, match="too few units"):
        comparison_of(0.5, 0.6, np.empty(0), 0.02)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_resampled_metrics_of_unit_weights_are_the_metrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, 60), rng.integers(0, 9, 60) / 9
    labels[:2] = [0, 1]
    units = rng.integers(0, 20, 60)
    for name, oracle in {"auc_roc": roc_auc_score, "average_precision": average_precision_score}.items():
        found = classifier_evaluation(labels, scores, units, {"all": np.ones(60, bool)}, name)
        ones = np.ones((1, len(found.units)))
        assert found.resampled[name](ones)[0] == pytest.approx(oracle(labels, scores))
        assert found.slices["all"].value == pytest.approx(found.metrics[name])
        error = found.resampled["calibration_error"](ones)[0]
        assert error == pytest.approx(found.metrics["calibration_error"])
        twice = classifier_evaluation(np.tile(labels, 2), np.tile(scores, 2), np.tile(units, 2), {}, name)
        assert twice.resampled[name](ones) == pytest.approx(found.resampled[name](2 * ones))


def test_viewers_are_compared_by_their_own_values() -> None:
    values = RNG.random(500)
    old = mean_evaluation({"ndcg": values}, np.arange(500), {"few": np.arange(500) < 100}, "ndcg", 5000)
    new = mean_evaluation({"ndcg": values + 0.1}, np.arange(500), {"few": np.arange(500) < 100}, "ndcg", 5000)
    compared, differences = compare(old, new, "ndcg", margin=0.01, resamples=100, seed=0)
    assert compared.difference == pytest.approx(0.1)
    assert (compared.lower, compared.upper) == pytest.approx((0.1, 0.1))
    assert differences["slice: few"] == pytest.approx(np.full(100, 0.1))
    other = mean_evaluation({"ndcg": values}, np.arange(1, 501), {}, "ndcg", 5000)
    with pytest.raises(DataError, match="different holdout rows"):
        compare(other, new, "ndcg", margin=0.01, resamples=100, seed=0)
    with pytest.raises(EmptyWindowError):
        mean_evaluation({"ndcg": np.empty(0)}, np.empty(0), {}, "ndcg", 0)


# --- slices and calibration


def part(value: float, support: int = 100) -> SliceEvaluation:
    return SliceEvaluation(1000, support, value, lambda weights: np.full(len(weights), value))


@pytest.mark.parametrize(("difference", "outcome"), [(0.0, OK), (-0.04, OK), (-0.06, ASK), (-0.1, REFUSE)])
def test_a_slice_may_not_get_worse_beyond_doubt(difference: float, outcome: Outcome) -> None:
    old, new = {"night": part(0.8)}, {"night": part(0.8 + difference)}
    [found] = slice_findings(new, old, {"night": difference + NOISE}, GATE)
    assert (found.guard, found.outcome) == ("slice: night", outcome)


def test_many_slices_share_the_error_and_small_ones_are_not_judged() -> None:
    sample = -0.07 + NOISE + RNG.normal(0, 0.025, 1000)
    alone = slice_findings({"a": part(0.73)}, {"a": part(0.8)}, {"a": sample}, GATE)
    names = [f"s{i}" for i in range(40)]
    many = slice_findings(
        dict.fromkeys(names, part(0.73)), dict.fromkeys(names, part(0.8)), dict.fromkeys(names, sample), GATE
    )
    assert alone[0].outcome == ASK
    assert {found.outcome for found in many} == {OK}
    [small] = slice_findings({"a": part(0.1, 29)}, {"a": part(0.9, 29)}, {"a": sample}, GATE)
    assert (small.outcome, small.message) == (OK, "not judged: 29 of the rarer kind, 30 are needed")


@pytest.mark.parametrize(
    ("error", "champion", "shift", "outcome"),
    [
        (0.05, None, 0, OK),
        (0.11, None, 0, REFUSE),
        (0.029, 0.02, 0.009, OK),
        (0.035, 0.02, 0.005, OK),
        (0.04, 0.02, 0.02, ASK),
        (0.06, 0.02, 0.04, REFUSE),
    ],
)
def test_calibration_may_not_get_worse(
    error: float, champion: float | None, shift: float, outcome: Outcome
) -> None:
    assert calibration_finding(error, champion, shift + NOISE, GATE).outcome == outcome


# --- the training


def interval(end: datetime, gap: int = 7) -> TrainingInterval:
    holdout = end + timedelta(days=gap)
    return TrainingInterval(
        start=end - timedelta(days=28),
        end=end,
        holdout_start=holdout,
        holdout_end=holdout + timedelta(days=7),
        rows=100,
        positives=10,
    )


@pytest.mark.parametrize(
    ("gap", "known", "days", "outcome"),
    [(7, 0, 0, OK), (7, 3, 3, OK), (7, 5, 5, ASK), (7, 8, 8, REFUSE), (37, 0, 30, REFUSE)],
)
def test_a_training_ends_where_its_labels_do(gap: int, known: int, days: int, outcome: Outcome) -> None:
    training = interval(datetime(2024, 3, 1, tzinfo=UTC), gap)
    until = training.holdout_end + timedelta(days=known)
    found = staleness_finding(training, until, timedelta(days=7), GATE)
    assert (found.value, found.outcome) == (days, outcome)
    assert f"{days:.1f} days further" in found.message


def test_the_vector_must_be_the_services() -> None:
    trained = contract_of()
    assert signature_finding(trained, contract_of()).outcome == OK
    fewer = signature_finding(trained, contract_of(FEATURES[:-1]))
    assert (fewer.outcome, "sort (string)" in fewer.message) == (REFUSE, True)
    typed = [{**FEATURES[0], "type": "int64"}, *FEATURES[1:]]
    assert "size (int64)" in signature_finding(trained, contract_of(typed)).message
    turned = signature_finding(trained, contract_of(FEATURES[::-1]))
    assert (turned.outcome, "the order differs" in turned.message) == (REFUSE, True)
    meaning = [{**FEATURES[0], "source": "elsewhere"}, *FEATURES[1:]]
    assert signature_finding(trained, contract_of(meaning)).outcome == ASK


@pytest.mark.parametrize(("mismatches", "missing", "outcome"), [(0, 0, OK), (1, 0, REFUSE), (0, 2, ASK)])
def test_served_features_must_be_the_recomputed_ones(mismatches: int, missing: int, outcome: Outcome) -> None:
    report = {
        "date": "2024-03-01T10:00:00+00:00",
        "vectors": 50,
        "mismatches": mismatches,
        "not_recomputed": missing,
        "by_feature": {"size": mismatches},
    }
    assert parity_finding(report, "simulated_v1").outcome == outcome
    assert parity_finding(None, "simulated_v1").outcome == OK


@pytest.mark.parametrize(
    ("mine", "theirs", "outcome"),
    [
        (1999, None, OK),
        (2001, None, REFUSE),
        (300, 90, ASK),
        (300, 110, OK),
        (190, 20, OK),
        (2001, 1900, REFUSE),
    ],
)
def test_one_row_may_not_take_too_long(mine: float, theirs: float | None, outcome: Outcome) -> None:
    assert latency_finding(mine, theirs, GATE).outcome == outcome


@pytest.mark.parametrize(("flipped", "outcome"), [(0, OK), (1, ASK), (2, REFUSE)])
def test_training_labels_must_be_the_stores(flipped: int, outcome: Outcome) -> None:
    known = pd.Series(np.zeros(1000, dtype="int8"))
    trained = known.copy()
    trained.iloc[:flipped] = 1
    assert labels_finding(trained, known, GATE).outcome == outcome
    assert labels_finding(known, known.iloc[flipped:], GATE).outcome == outcome


def frame(rows: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    values = {
        "size": rng.gamma(2, 20, rows),
        "count": rng.poisson(4, rows).astype(float),
        "risk": np.where(rng.random(rows) < 0.1, np.nan, rng.random(rows)),
        "sort": rng.choice(np.array(["a", "b", None], dtype=object), rows),
    }
    return pd.DataFrame(values, index=pd.RangeIndex(rows))


@pytest.mark.parametrize(("rows", "outcome"), [(0, OK), (3, ASK), (5, REFUSE)])
@pytest.mark.parametrize("column", ["size", "sort"])
def test_training_values_must_be_the_stores(rows: int, outcome: Outcome, column: str) -> None:
    fetched, trained = frame(), frame()
    trained.loc[: rows - 1, column] = {"size": -1.0, "sort": "z"}[column]
    found = values_finding(trained, fetched, SERVICE.features, GATE)
    assert found.outcome == outcome
    assert (column in found.message) == (rows > 0)
    assert values_finding(fetched, fetched.iloc[rows:], SERVICE.features, GATE).outcome == outcome


def test_a_bundle_must_state_what_its_training_set_holds() -> None:
    training, stated = interval(datetime(2024, 3, 1, tzinfo=UTC)), {"size": {"counts": [1]}}
    assert agreement_finding(training, 100, 10, stated, stated).outcome == OK
    assert agreement_finding(training, 100, 11, stated, stated).outcome == REFUSE
    other = agreement_finding(training, 100, 10, stated, {"size": {"counts": [2]}})
    assert (other.outcome, "size" in other.message) == (REFUSE, True)


@pytest.mark.parametrize(("auc", "outcome"), [(0.95, OK), (0.96, ASK), (0.98, REFUSE)])
def test_no_feature_may_give_the_label_away(auc: float, outcome: Outcome) -> None:
    assert leak_finding([Leak("size", auc), Leak("risk", 0.6)], GATE).outcome == outcome


def test_features_rank_either_way_round_and_as_categories() -> None:
    labels = np.tile([0, 1], 200)
    rows = frame().assign(size=-labels * 1.0, sort=np.where(labels == 1, "a", "b"))
    rows.loc[:, "risk"] = np.where(labels == 1, np.nan, rows["risk"].fillna(0))
    aucs = {leak.feature: leak.auc for leak in single_feature_aucs(rows, labels, SERVICE.features)}
    assert [aucs[name] for name in ("size", "sort", "risk")] == [1.0, 1.0, 1.0]
    assert aucs["count"] < 0.6


def test_a_factor_of_ten_shifts_a_feature_and_another_draw_does_not() -> None:
    rng = np.random.default_rng(2)
    old, new = rng.gamma(2, 20, 20_000), pd.DataFrame({"size": rng.gamma(2, 20, 5_000)})
    champion = {"size": numeric_reference(old)}
    assert stability_index(champion["size"], new["size"]) < 0.05
    assert shift_finding(new, champion, ["size"], GATE).outcome == OK
    assert shift_finding(new * 10, champion, ["size"], GATE).outcome == REFUSE
    assert shift_finding(new * 2, champion, ["size"], GATE).outcome == ASK


def test_unseen_categories_and_nulls_shift_a_feature() -> None:
    expected = {"categories": ["a", "b"], "counts": [50, 50], "null_count": 0}
    assert stability_index(expected, pd.Series(["a", "b"] * 50)) == pytest.approx(0)
    assert stability_index(expected, pd.Series(["a", None] * 50)) > 1
    assert stability_index(expected, pd.Series(["a", "c"] * 50)) > 1
