"""Reference statistics count every training row once."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.drift_reference import numeric_reference, reference_statistics
from common_ml_utils.preprocessing import Preprocessing


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=200))
def test_counts_and_nulls_add_up_and_edges_rise(values: list[float]) -> None:
    reference = numeric_reference(np.array(values, dtype=float))
    assert sum(reference["counts"]) + reference["null_count"] == len(values)
    assert len(reference["counts"]) == len(reference["edges"]) + 1
    assert reference["edges"] == sorted(set(reference["edges"]))


def test_bins_hold_about_equally_many_distinct_values() -> None:
    reference = numeric_reference(np.arange(1000.0), bins=10)
    assert all(95 <= count <= 105 for count in reference["counts"])


def test_a_value_on_an_edge_counts_above_it() -> None:
    reference = numeric_reference(np.array([0.0, 0.0, 1.0, 1.0]), bins=2)
    assert reference["edges"] == [0.0]
    assert reference["counts"] == [0, 4]


def test_every_feature_and_the_score_have_a_reference(
    contract: PublishedContract, parcels: pd.DataFrame
) -> None:
    parcels.loc[:3, "parcel_carrier"] = None
    preprocessing = Preprocessing.fit(contract.service, parcels)
    reference = reference_statistics(parcels, preprocessing, np.linspace(0, 1, 50))
    assert set(reference) == {*preprocessing.names, "score"}
    assert reference["parcel_carrier"]["null_count"] == 4
    assert sum(reference["parcel_carrier"]["counts"]) == 396
    assert sum(reference["score"]["counts"]) == 50
