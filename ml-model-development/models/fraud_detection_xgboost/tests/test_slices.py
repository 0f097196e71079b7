"""The groups of transactions that are reported and guarded, and the words for what raises a score."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import FEATURES, make_transactions
from src import slices
from src.slices import slices_of

from common_ml_utils.errors import SchemaMismatchError


def test_every_payment_is_in_exactly_one_amount_band() -> None:
    frame = make_transactions(days=3)
    masks = [mask for name, mask in slices_of(frame).items() if name.startswith("amount")]
    np.testing.assert_array_equal(np.sum(masks, axis=0), np.ones(len(frame)))


def test_slices_by_hand() -> None:
    frame = pd.DataFrame(
        {
            "tx_amount": [0.0, 19.99, 20.0, 200.0],
            "tx_is_night": [1.0, 0.0, 0.0, 1.0],
            "terminal_labelled_tx_count_30d": [0.0, 9.0, 10.0, 50.0],
        }
    )
    found = {name: np.flatnonzero(mask).tolist() for name, mask in slices_of(frame).items()}
    assert found == {
        "amount: 0-20": [0, 1],
        "amount: 20-50": [2],
        "amount: 50-100": [],
        "amount: 100-200": [],
        "amount: 200 and more": [3],
        "terminal: new (< 10 labelled in 30 days)": [0, 1],
        "time: night": [0, 3],
    }


def test_an_absent_feature_is_named() -> None:
    with pytest.raises(SchemaMismatchError, match="terminal_labelled_tx_count_30d"):
        slices_of(make_transactions(days=1).drop(columns="terminal_labelled_tx_count_30d"))


def test_every_feature_has_a_reason_code_and_one_text_a_code() -> None:
    codes = json.loads((Path(slices.__file__).parent / "reason_codes.json").read_text())
    assert list(codes) == FEATURES
    texts: dict[str, str] = {}
    for reason in codes.values():
        assert set(reason) == {"code", "text"}
        assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", reason["code"])
        assert texts.setdefault(reason["code"], reason["text"]) == reason["text"]
