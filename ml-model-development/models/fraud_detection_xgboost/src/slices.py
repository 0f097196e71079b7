"""Groups of transactions that the gate guards and the model card reports: amounts, new terminals, night."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from common_ml_utils.errors import SchemaMismatchError

if TYPE_CHECKING:
    from common_ml_utils.slices import Slices

AMOUNT_EDGES = (0, 20, 50, 100, 200)
"""Lower edges of the amount bands; a band holds its lower edge, the last one has no upper edge."""
FEW_LABELLED = 10
"""A terminal with fewer labelled payments in its 30 days of history counts as new: little is known of it."""
COLUMNS = ("tx_amount", "tx_is_night", "terminal_labelled_tx_count_30d")


def slices_of(frame: pd.DataFrame) -> Slices:
    """Return the slices of a frame of feature vectors; bands of amounts part the frame, the others overlap.

    Raises SchemaMismatchError when a feature is absent.
    """
    absent = [name for name in COLUMNS if name not in frame.columns]
    if absent:
        raise SchemaMismatchError(f"slices need the features {absent}, which the frame lacks")
    amount, night, labelled = (frame[name].to_numpy() for name in COLUMNS)
    slices = {}
    for lower, upper in zip(AMOUNT_EDGES, (*AMOUNT_EDGES[1:], None), strict=True):
        if upper is None:
            slices[f"amount: {lower} and more"] = amount >= lower
        else:
            slices[f"amount: {lower}-{upper}"] = (amount >= lower) & (amount < upper)
    slices[f"terminal: new (< {FEW_LABELLED} labelled in 30 days)"] = labelled < FEW_LABELLED
    slices["time: night"] = night == 1
    return slices
