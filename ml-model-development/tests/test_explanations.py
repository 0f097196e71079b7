"""Reasons come from exact contributions, in one order, whatever the order of columns or rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xgboost
from conftest import make_contents
from hypothesis import given
from hypothesis import strategies as st

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import SchemaMismatchError
from common_ml_utils.explanations import ReasonCodes, mean_absolute, top_code_agreement
from common_ml_utils.native_models import LightGBMModel, NativeModel, XGBoostModel
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.release_bundle import ReasonCode

NAMES = ["amount", "night", "risk_1d", "risk_30d", "risk_7d", "visits"]
CODES = {
    "amount": ReasonCode(code="AMOUNT", text="The amount is unusual"),
    "night": ReasonCode(code="NIGHT", text="It was night"),
    "risk_1d": ReasonCode(code="RISK", text="The place is risky"),
    "risk_30d": ReasonCode(code="RISK", text="The place is risky"),
    "risk_7d": ReasonCode(code="RISK", text="The place is risky"),
    "visits": ReasonCode(code="VISITS", text="Few visits"),
}
ROWS = st.lists(
    st.lists(
        st.sampled_from([-2.0, -0.3, 0.0, 0.1, 0.5, 0.7, 3.0]) | st.floats(-5, 5), min_size=6, max_size=6
    ),
    min_size=1,
    max_size=6,
)


def test_reasons_by_hand() -> None:
    contributions = np.array([[1.0, -0.5, 0.6, 0.2, 0.4, 0.1]])
    [reasons] = ReasonCodes(NAMES, CODES).reasons(contributions)
    assert [(reason.code, round(reason.contribution, 9)) for reason in reasons] == [
        ("RISK", 1.2),
        ("AMOUNT", 1.0),
    ]
    assert reasons[0].text == "The place is risky"  # VISITS holds 0.1 of 2.3, less than 5 %


def test_features_that_cancel_out_are_no_reason() -> None:
    [reasons] = ReasonCodes(NAMES, CODES).reasons(np.array([[0.0, 0.0, 2.0, -2.5, 0.0, 0.0]]))
    assert reasons == []


def test_ties_go_by_code() -> None:
    [reasons] = ReasonCodes(NAMES, CODES).reasons(np.array([[0.7, 0.7, 0.0, 0.0, 0.7, 0.7]]))
    assert [reason.code for reason in reasons] == ["AMOUNT", "NIGHT", "RISK"]


@given(ROWS, st.permutations(range(6)))
def test_the_order_of_features_does_not_matter(rows: list[list[float]], order: list[int]) -> None:
    contributions = np.array(rows)
    straight = ReasonCodes(NAMES, CODES)
    shuffled = ReasonCodes([NAMES[i] for i in order], CODES)
    assert shuffled.reasons(contributions[:, order]) == straight.reasons(contributions)
    assert np.array_equal(shuffled.sums(contributions[:, order]), straight.sums(contributions))


@given(ROWS, st.integers(1, 4), st.floats(0, 0.5))
def test_reasons_raise_the_score_strongest_first_and_never_too_many(
    rows: list[list[float]], k: int, share: float
) -> None:
    codes = ReasonCodes(NAMES, CODES)
    contributions = np.array(rows)
    for reasons, sums in zip(codes.reasons(contributions, k, share), codes.sums(contributions), strict=True):
        amounts = [reason.contribution for reason in reasons]
        assert len(reasons) <= k
        assert amounts == sorted(amounts, reverse=True)
        assert all(amount > 0 for amount in amounts)
        raised = sums[sums > 0].sum()
        assert all(amount >= share * raised * (1 - 1e-9) for amount in amounts)
    np.testing.assert_allclose(codes.sums(contributions).sum(axis=1), contributions.sum(axis=1), atol=1e-9)


def test_every_feature_needs_a_code() -> None:
    with pytest.raises(SchemaMismatchError, match="visits"):
        ReasonCodes(NAMES, {name: CODES[name] for name in NAMES[:-1]})


def lightgbm_model(matrix: np.ndarray, labels: np.ndarray) -> LightGBMModel:
    import lightgbm

    parameters = {"objective": "binary", "num_threads": 1, "verbosity": -1, "seed": 0}
    return LightGBMModel(lightgbm.train(parameters, lightgbm.Dataset(matrix, labels), num_boost_round=30))


@pytest.fixture(params=["xgboost", "lightgbm"])
def fitted(
    request: pytest.FixtureRequest, contract: PublishedContract, parcels: pd.DataFrame
) -> tuple[NativeModel, np.ndarray]:
    """A model of each library with its rows, some values missing."""
    contents = make_contents(contract, parcels)
    matrix = contents.preprocessing.transform(parcels)
    matrix[::7, 1] = np.nan
    if request.param == "xgboost":
        return contents.model, matrix
    return lightgbm_model(matrix, parcels["lost"].to_numpy()), matrix


def test_base_and_contributions_add_up_to_the_logit_of_the_score(
    fitted: tuple[NativeModel, np.ndarray],
) -> None:
    model, matrix = fitted
    scores = model.scores(matrix)
    logit = np.log(scores / (1 - scores))
    contributions, base = model.contributions(matrix), model.base_value()
    np.testing.assert_allclose(contributions.sum(axis=1) + base, logit, atol=1e-4, rtol=0)
    assert np.ptp(logit) > 1


def test_the_same_row_has_the_same_reasons_alone_and_among_others(
    fitted: tuple[NativeModel, np.ndarray],
) -> None:
    model, matrix = fitted
    names = ["weight", "stops", "carrier"]
    codes = ReasonCodes(names, {name: ReasonCode(code=name.upper(), text=name) for name in names})
    together = codes.reasons(model.contributions(matrix))
    backwards = codes.reasons(model.contributions(matrix[::-1]))[::-1]
    alone = [codes.reasons(model.contributions(matrix[i : i + 1]))[0] for i in range(30)]
    assert together == backwards
    assert together[:30] == alone
    assert codes.reasons(model.contributions(matrix)) == together


def test_another_seed_keeps_the_first_reason_of_most_rows(
    contract: PublishedContract, parcels: pd.DataFrame
) -> None:
    """Measured on the real data: docs/model-card.md, "Reason codes"."""
    preprocessing = Preprocessing.fit(contract.service, parcels)
    matrix, labels = preprocessing.transform(parcels), parcels["lost"].to_numpy()
    names = preprocessing.names
    codes = ReasonCodes(names, {name: ReasonCode(code=name.upper(), text=name) for name in names})
    one, other = (
        XGBoostModel(
            xgboost.train(
                {"objective": "binary:logistic", "max_depth": 3, "eta": 0.1, "subsample": 0.8}
                | {"seed": seed, "nthread": 1},
                xgboost.DMatrix(matrix, labels),
                40,
            )
        ).contributions(matrix)
        for seed in (0, 1)
    )
    assert not np.array_equal(one, other)
    assert top_code_agreement(codes, one, other) > 0.8


def test_the_most_moving_names_come_first() -> None:
    contributions = np.array([[1.0, -3.0, 1.0], [1.0, 3.0, -1.0]])
    assert list(mean_absolute(["z", "b", "a"], contributions).items()) == [("b", 3), ("a", 1), ("z", 1)]


def test_agreement_counts_rows_with_a_reason() -> None:
    codes = ReasonCodes(NAMES, CODES)
    quiet, loud = np.full((1, 6), -1.0), np.array([[1.0, 0, 0, 0, 0, 0]])
    assert top_code_agreement(codes, np.vstack([quiet, loud]), np.vstack([quiet, loud])) == 1
    assert top_code_agreement(codes, np.vstack([loud, loud]), np.vstack([quiet, loud])) == 0.5
    assert np.isnan(top_code_agreement(codes, quiet, quiet))
