"""Values no transaction can have are found by name."""

from __future__ import annotations

import pandas as pd
import pytest
from src.preprocessor import check_ranges, days_since_epoch

from common_ml_utils.errors import SchemaMismatchError


def test_good_transactions_pass_unchanged(transactions: pd.DataFrame) -> None:
    assert check_ranges(transactions) is transactions


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("tx_amount", -0.01, "tx_amount < 0"),
        ("terminal_fraud_risk_7d", 1.01, r"terminal_fraud_risk_7d outside of \[0, 1\]"),
        ("terminal_fraud_risk_7d", float("nan"), r"terminal_fraud_risk_7d outside of \[0, 1\]"),
        ("terminal_labelled_tx_count_1d", -1, "terminal_labelled_tx_count_1d < 0"),
        ("customer_tx_count_1d", 0, "customer_tx_count_1d < 1"),
        ("terminal_tx_count_30d", 2, "terminal_tx_count shrinks with a longer window"),
    ],
)
def test_impossible_values_are_refused_by_name(
    transactions: pd.DataFrame, column: str, value: float, message: str
) -> None:
    transactions.loc[5, column] = value
    with pytest.raises(SchemaMismatchError, match=message):
        check_ranges(transactions)


def test_an_amount_of_zero_is_possible(transactions: pd.DataFrame) -> None:
    transactions.loc[5, "tx_amount"] = 0.0
    check_ranges(transactions)


def test_a_day_is_the_utc_day() -> None:
    times = pd.to_datetime(["1970-01-01T23:59:59.999999Z", "1970-01-02T00:00:00.000000Z"])
    frame = pd.DataFrame({"event_timestamp": times.astype("datetime64[us, UTC]")})
    assert days_since_epoch(frame).tolist() == [0, 1]
