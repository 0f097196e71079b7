"""Ranges of the subscriber features and LightGBM's view of them."""

from __future__ import annotations

import pandas as pd
import pytest
from src.preprocessor import check_ranges

from common_ml_utils.errors import SchemaMismatchError


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
