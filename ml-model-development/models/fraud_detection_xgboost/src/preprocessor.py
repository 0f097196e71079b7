"""What is particular to the fraud features once they come from the store: their ranges and their day."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common_ml_utils.errors import SchemaMismatchError

SECONDS_A_DAY = 86_400


def check_ranges(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame, or raise SchemaMismatchError for a value no transaction can have.

    Amounts and counts are not negative, windows of transactions hold the transaction itself, risks are
    shares, and a longer window never counts less than a shorter one.
    """
    problems = []
    for name in frame.columns:
        values = frame[name]
        if name == "tx_amount" and (values < 0).any():
            problems.append(f"{name} < 0")
        elif "_fraud_risk_" in name and not values.between(0, 1).all():
            problems.append(f"{name} outside of [0, 1]")
        elif "_labelled_tx_count_" in name and (values < 0).any():
            problems.append(f"{name} < 0")
        elif "_tx_count_" in name and "labelled" not in name and (values < 1).any():
            problems.append(f"{name} < 1: the transaction itself counts")
    for entity in ("customer_tx_count", "terminal_tx_count", "terminal_labelled_tx_count"):
        columns = [f"{entity}_{days}d" for days in (1, 7, 30) if f"{entity}_{days}d" in frame.columns]
        shrinking = (np.diff(frame[columns].to_numpy(), axis=1) < 0).any() if len(columns) > 1 else False
        if shrinking:
            problems.append(f"{entity} shrinks with a longer window")
    if problems:
        raise SchemaMismatchError(f"impossible feature values: {'; '.join(problems)}")
    return frame


def days_since_epoch(frame: pd.DataFrame) -> np.ndarray:
    """Return each transaction's UTC day as days since 1970-01-01."""
    seconds = frame["event_timestamp"].astype("datetime64[s, UTC]").astype("int64")
    return (seconds // SECONDS_A_DAY).to_numpy()
