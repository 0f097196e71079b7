"""What a labelled frame must be before it is trusted."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pandas as pd
import pytest
from conftest import CONTRACT

from common_ml_utils.data_schemas.training_data_contract import (
    PublishedContract,
    TrainingDataContract,
    VectorFeature,
    require_both_classes,
    typed_feature,
)
from common_ml_utils.errors import (
    EmptyWindowError,
    ImmatureLabelsError,
    OneClassLabelsError,
    SchemaMismatchError,
)


@pytest.fixture
def shape(contract: PublishedContract) -> TrainingDataContract:
    return TrainingDataContract(service=contract.service, key="parcel_id", label="lost")


def test_a_good_frame_gets_the_contracts_columns_order_and_types(
    shape: TrainingDataContract, parcels: pd.DataFrame
) -> None:
    shuffled = parcels[list(reversed(parcels.columns))]
    typed = shape.validate_frame(shuffled)
    assert list(typed.columns) == shape.columns
    assert typed["parcel_stops"].dtype == "float64"
    assert str(typed["event_timestamp"].dtype) == "datetime64[us, UTC]"
    assert typed["lost"].dtype == "int8"


def test_missing_and_extra_columns_are_both_named(shape: TrainingDataContract, parcels: pd.DataFrame) -> None:
    wrong = parcels.drop(columns="parcel_stops").assign(lost_reason="rain")
    with pytest.raises(
        SchemaMismatchError, match=r"missing \['parcel_stops'\], unexpected \['lost_reason'\]"
    ):
        shape.validate_frame(wrong)


def test_an_empty_frame_is_refused(shape: TrainingDataContract, parcels: pd.DataFrame) -> None:
    with pytest.raises(EmptyWindowError):
        shape.validate_frame(parcels.head(0))


def test_a_repeated_key_is_refused(shape: TrainingDataContract, parcels: pd.DataFrame) -> None:
    with pytest.raises(SchemaMismatchError, match="parcel_id is not unique: 1"):
        shape.validate_frame(pd.concat([parcels, parcels.head(1)]))


def test_labels_younger_than_the_cut_off_are_refused(
    shape: TrainingDataContract, parcels: pd.DataFrame
) -> None:
    last = parcels["label_known_at"].max().to_pydatetime()
    shape.validate_frame(parcels, last)
    with pytest.raises(ImmatureLabelsError, match="1 of 400"):
        shape.validate_frame(parcels, last.replace(microsecond=0) - pd.Timedelta(seconds=1))


def test_times_without_a_zone_are_refused(shape: TrainingDataContract, parcels: pd.DataFrame) -> None:
    naive = parcels.assign(event_timestamp=parcels["event_timestamp"].dt.tz_localize(None))
    with pytest.raises(SchemaMismatchError, match="time zone"):
        shape.validate_frame(naive)


@pytest.mark.parametrize("bad", [2, None, 0.5])
def test_labels_other_than_zero_and_one_are_refused(
    shape: TrainingDataContract, parcels: pd.DataFrame, bad: float | None
) -> None:
    labels = parcels["lost"].astype(object)
    labels.iloc[3] = bad
    with pytest.raises(SchemaMismatchError, match="labels must be 0 or 1"):
        shape.validate_frame(parcels.assign(lost=labels))


def test_on_missing_decides_what_a_null_becomes() -> None:
    values = pd.Series([1.0, None])
    kinds = {"source": "v", "type": "float64"}
    assert (
        typed_feature(values, VectorFeature(name="a", on_missing="default", default=4, **kinds)).iloc[1] == 4
    )
    assert pd.isna(typed_feature(values, VectorFeature(name="a", on_missing="null", **kinds)).iloc[1])
    with pytest.raises(SchemaMismatchError, match="the contract says 'fail'"):
        typed_feature(values, VectorFeature(name="a", on_missing="fail", **kinds))


def test_wrong_types_are_refused_by_name() -> None:
    with pytest.raises(SchemaMismatchError, match="weight: not numeric"):
        typed_feature(pd.Series(["heavy"]), VectorFeature(name="weight", source="v", type="float64"))
    with pytest.raises(SchemaMismatchError, match="weight: holds an infinite"):
        typed_feature(pd.Series([float("inf")]), VectorFeature(name="weight", source="v", type="float64"))
    with pytest.raises(SchemaMismatchError, match="carrier: 3 is not a string"):
        typed_feature(pd.Series([3]), VectorFeature(name="carrier", source="v", type="string"))


def test_one_class_labels_are_refused() -> None:
    with pytest.raises(OneClassLabelsError, match="holdout"):
        require_both_classes(pd.Series([0, 0, 0]), "holdout")
    with pytest.raises(EmptyWindowError, match="holdout: there are no rows"):
        require_both_classes(pd.Series([], dtype=int), "holdout")


def test_a_contract_keeps_the_text_it_was_published_as() -> None:
    text = json.dumps(CONTRACT, indent=3)
    assert PublishedContract.parse(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "{}",
        json.dumps({**CONTRACT, "features": []}),
        json.dumps({**CONTRACT, "features": [CONTRACT["features"][0]] * 2}),
        json.dumps({**CONTRACT, "features": [{**CONTRACT["features"][0], "on_missing": "default"}]}),
        json.dumps({**CONTRACT, "features": [{**CONTRACT["features"][0], "on_stale": "use_stale"}]}),
    ],
)
def test_a_broken_contract_is_refused(text: str) -> None:
    with pytest.raises(SchemaMismatchError, match="contract can't be read"):
        PublishedContract.parse(text)


def test_maturity_is_checked_in_utc(shape: TrainingDataContract, parcels: pd.DataFrame) -> None:
    tokyo = parcels.assign(label_known_at=parcels["label_known_at"].dt.tz_convert("Asia/Tokyo"))
    last = parcels["label_known_at"].max()
    assert len(shape.validate_frame(tokyo, datetime.fromtimestamp(last.timestamp(), UTC))) == 400
