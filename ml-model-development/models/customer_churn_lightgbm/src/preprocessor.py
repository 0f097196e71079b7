"""What is particular to the churn features once fetched: their ranges."""

from __future__ import annotations

import pandas as pd

from common_ml_utils.errors import SchemaMismatchError

FLAG_PREFIXES = ("subscriber_is_", "subscriber_has_")
NOT_NEGATIVE = ("subscriber_tenure_months", "subscriber_monthly_charges_usd", "subscriber_total_charges_usd")


def check_ranges(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame, or raise SchemaMismatchError for a value no subscriber can have; nulls pass."""
    problems = []
    for name in frame.columns:
        known = frame[name].dropna()
        if name.startswith(FLAG_PREFIXES) and not known.isin([0, 1]).all():
            problems.append(f"{name} is neither 0 nor 1")
        elif name in NOT_NEGATIVE and (known < 0).any():
            problems.append(f"{name} < 0")
    if problems:
        raise SchemaMismatchError(f"impossible feature values: {'; '.join(problems)}")
    return frame
