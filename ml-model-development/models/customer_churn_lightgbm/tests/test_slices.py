"""Slices of subscribers, and the reason codes: every feature of the feature service has one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from src import slices
from src.slices import slices_of

SOURCE = Path(slices.__file__).parent
SERVICE = Path(__file__).parents[4] / "feature-store-management/contracts/feature_services"


def test_slices_are_worked_out_by_hand() -> None:
    frame = pd.DataFrame(
        {
            "subscriber_is_senior": [1.0, 0.0, np.nan],
            "subscriber_is_female": [0.0, 1.0, 1.0],
            "subscriber_contract": ["Month-to-month", "Two year", None],
            "subscriber_tenure_months": [5.0, 6.0, np.nan],
        }
    )
    masks = {name: mask.tolist() for name, mask in slices_of(frame).items() if mask.any()}
    assert masks == {
        "senior citizen: yes": [True, False, False],
        "senior citizen: no": [False, True, False],
        "gender: female": [False, True, True],
        "gender: male": [True, False, False],
        "contract: month-to-month": [True, False, False],
        "contract: two year": [False, True, False],
        "tenure: 0-5 months": [True, False, False],
        "tenure: 6-23 months": [False, True, False],
    }


@given(st.lists(st.integers(0, 600), min_size=1, max_size=30))
def test_every_tenure_is_in_exactly_one_band(months: list[int]) -> None:
    masks = slices_of(pd.DataFrame({"subscriber_tenure_months": months}))
    assert np.sum(list(masks.values()), axis=0).tolist() == [1] * len(months)
    assert {mask.dtype for mask in masks.values()} == {np.dtype(bool)}


def test_each_feature_of_the_service_has_a_stable_reason_code_and_a_text() -> None:
    codes = json.loads((SOURCE / "reason_codes.json").read_text())
    contract = (SERVICE / "customer_churn_v1.yaml").read_text()
    vector = re.findall(r"\{name: (\w+), source:", contract)
    assert len(vector) == 19
    assert list(codes) == vector
    texts: dict[str, set[str]] = {}
    for reason in codes.values():
        assert set(reason) == {"code", "text"}
        assert re.fullmatch(r"[A-Z][A-Z_]+", reason["code"])
        texts.setdefault(reason["code"], set()).add(reason["text"])
    assert {len(found) for found in texts.values()} == {1}, "one code says one thing"


@pytest.mark.parametrize("missing", ["subscriber_contract", "subscriber_tenure_months"])
def test_a_model_without_a_column_has_no_slices_of_it(missing: str) -> None:
    frame = pd.DataFrame({"subscriber_contract": ["One year"], "subscriber_tenure_months": [3]})
    word = missing.split("_")[1]
    assert not [name for name in slices_of(frame.drop(columns=missing)) if name.startswith(word)]
    assert [name for name in slices_of(frame) if name.startswith(word)]
