"""Vectors become the same numbers one by one and in batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import SchemaMismatchError
from common_ml_utils.preprocessing import PreprocessedFeature, Preprocessing, RowEncoder

PREPROCESSING = Preprocessing(
    features=(
        PreprocessedFeature(name="weight", kind="numeric"),
        PreprocessedFeature(name="carrier", kind="categorical", categories=("east", "north")),
    )
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "weight": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "carrier": st.none() | st.sampled_from(["east", "north", "", "west"]),
        }
    ),
    min_size=1,
    max_size=8,
)


@given(ROWS)
def test_one_row_and_batch_paths_agree(rows: list[dict[str, Any]]) -> None:
    batch = PREPROCESSING.transform(pd.DataFrame(rows, dtype=object))
    single = np.concatenate([PREPROCESSING.transform_row(row) for row in rows])
    np.testing.assert_array_equal(batch, single)


def test_categories_are_indexes_and_anything_unknown_is_missing() -> None:
    frame = pd.DataFrame({"weight": [1, 2, 3], "carrier": ["north", "west", None]})
    np.testing.assert_array_equal(PREPROCESSING.transform(frame)[:, 1], [1, np.nan, np.nan])


def test_fitting_sorts_the_categories_so_that_row_order_does_not_matter(
    contract: PublishedContract, parcels: pd.DataFrame
) -> None:
    fitted = Preprocessing.fit(contract.service, parcels)
    assert fitted == Preprocessing.fit(contract.service, parcels.sample(frac=1, random_state=0))
    assert fitted.features[2].categories == ("east", "north", "south")
    assert fitted.categorical_indexes == [2]


def test_a_missing_feature_and_text_for_a_number_are_refused() -> None:
    with pytest.raises(SchemaMismatchError, match="carrier"):
        PREPROCESSING.transform(pd.DataFrame({"weight": [1.0]}))
    with pytest.raises(SchemaMismatchError, match="carrier"):
        PREPROCESSING.transform_row({"weight": 1.0})
    with pytest.raises(SchemaMismatchError, match="weight: not numeric"):
        PREPROCESSING.transform_row({"weight": "1.0", "carrier": "east"})
    with pytest.raises(SchemaMismatchError, match="weight: not numeric"):
        PREPROCESSING.transform(pd.DataFrame({"weight": ["heavy"], "carrier": ["east"]}))


def test_it_survives_its_own_json() -> None:
    assert Preprocessing.model_validate_json(PREPROCESSING.model_dump_json()) == PREPROCESSING


def test_a_row_takes_every_kind_of_null_and_no_text_that_looks_like_a_number() -> None:
    encode = RowEncoder(PREPROCESSING).encode
    values: list[Any] = [None, pd.NA, np.nan, float("nan")]
    for null in values:
        assert np.isnan(encode({"weight": null, "carrier": None})).all()
    values = [2, 2.0, np.float32(2), np.int64(2)]
    for number in values:
        assert encode({"weight": number, "carrier": None})[0] == 2.0
    values = ["2.0", "", b"2", [2.0], 10**400]
    for stranger in values:
        with pytest.raises(SchemaMismatchError, match="weight: not numeric"):
            encode({"weight": stranger, "carrier": None})
