"""Ranges of the subscriber features and LightGBM's view of them."""

from __future__ import annotations

import pandas as pd
import pytest
from conftest import FakeFeatureStore
from src.preprocessor import check_ranges, training_set

from common_ml_utils.errors import SchemaMismatchError
from common_ml_utils.preprocessing import Preprocessing


def test_good_subscribers_pass_unchanged_nulls_included(subscribers: pd.DataFrame) -> None:
    subscribers.loc[3, "subscriber_is_senior"] = None
    assert check_ranges(subscribers) is subscribers


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("subscriber_is_senior", 2, "subscriber_is_senior is neither 0 nor 1"),
        ("subscriber_tenure_months", -1, "subscriber_tenure_months < 0"),
        ("subscriber_monthly_charges_usd", -0.5, "subscriber_monthly_charges_usd < 0"),
    ],
)
def test_impossible_values_are_refused_by_name(
    subscribers: pd.DataFrame, column: str, value: float, message: str
) -> None:
    subscribers.loc[5, column] = value
    with pytest.raises(SchemaMismatchError, match=message):
        check_ranges(subscribers)


def test_lightgbm_is_told_which_columns_are_categories(subscribers: pd.DataFrame) -> None:
    preprocessing = Preprocessing.fit(FakeFeatureStore(subscribers).published.service, subscribers)
    data = training_set(preprocessing, subscribers, subscribers["churned"].to_numpy())
    assert data.categorical_feature == [2, 3]
    assert data.feature_name == preprocessing.names
