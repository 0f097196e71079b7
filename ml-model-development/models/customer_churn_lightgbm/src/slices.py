"""The groups of subscribers the churn model is measured on apart: gate, model card and fairness read them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common_ml_utils.slices import Slices

FLAGS = {
    "subscriber_is_senior": {"senior citizen: yes": 1, "senior citizen: no": 0},
    "subscriber_is_female": {"gender: female": 1, "gender: male": 0},
}
CONTRACTS = {
    "contract: month-to-month": "Month-to-month",
    "contract: one year": "One year",
    "contract: two year": "Two year",
}
# Half a year, in which most who leave do so; two years, the longest contract; four years.
TENURE_MONTHS = {"0-5": (0, 6), "6-23": (6, 24), "24-47": (24, 48), "48 and more": (48, np.inf)}


def slices_of(frame: pd.DataFrame) -> Slices:
    """Return slice name -> mask; a null, and a column the frame does not have, belong to no slice."""
    slices: dict[str, np.ndarray] = {}
    for column, values in FLAGS.items():
        if column in frame:
            slices |= {name: (frame[column] == value).to_numpy(bool) for name, value in values.items()}
    if "subscriber_contract" in frame:
        contract = frame["subscriber_contract"]
        slices |= {name: (contract == value).to_numpy(bool) for name, value in CONTRACTS.items()}
    if "subscriber_tenure_months" in frame:
        months = frame["subscriber_tenure_months"].to_numpy(dtype=float, na_value=np.nan)
        slices |= {
            f"tenure: {name} months": (months >= low) & (months < high)
            for name, (low, high) in TENURE_MONTHS.items()
        }
    return slices
