"""What is asked of the feature store, without one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pytest
from conftest import CONTRACT

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import EmptyWindowError, FeatureStoreError, SchemaMismatchError
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient, day_windows
from common_ml_utils.settings import DatabaseAddress

NOWHERE = DatabaseAddress(
    host="127.0.0.1", port=1, name="feature_store", user="u", password="secret-password"
)
DAY = datetime(2024, 1, 1, tzinfo=UTC)
QUERY = EntityQuery(
    table=("labels", "fct_parcels"),
    columns=("parcel_id", "lost"),
    order_by="parcel_id",
    request={"asked_at": "extract(epoch FROM event_timestamp)"},
    labels_known_as_of=DAY + timedelta(days=9),
)


@dataclass
class FakeStore:
    """Answers every query with the same rows and remembers what was asked."""

    frame: pd.DataFrame
    tags: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def feature_service(self, name: str) -> FakeStore:
        return self

    def historical_features(self, service: Any, statement: str) -> pd.DataFrame:
        self.asked.append(statement)
        return self.frame.copy()


@pytest.fixture
def retrieved(parcels: pd.DataFrame) -> pd.DataFrame:
    """What Feast gives: the features, and sources of on-demand features beside them."""
    rows = parcels.head(3).iloc[::-1].drop(columns="label_known_at")
    return rows.assign(asked_at=1.0, parcel_stops=[1, None, 2], parcel_full_stops=1)


def test_rows_are_asked_for_as_of_their_own_time_and_only_with_known_labels() -> None:
    statement = QUERY.statement(DAY, DAY + timedelta(days=1))
    assert '"lost", "event_timestamp" AS event_timestamp, ' in statement
    assert "\"event_timestamp\" >= timestamptz '2024-01-01T00:00:00+00:00'" in statement
    assert "\"event_timestamp\" < timestamptz '2024-01-02T00:00:00+00:00'" in statement
    assert "label_known_at <= timestamptz '2024-01-10T00:00:00+00:00'" in statement
    assert 'extract(epoch FROM event_timestamp) AS "asked_at"' in statement


def test_times_without_a_zone_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        QUERY.statement(DAY.replace(tzinfo=None), DAY)


def test_days_are_cut_into_windows_that_meet() -> None:
    windows = day_windows(DAY, DAY + timedelta(days=3))
    assert [start for start, _ in windows[1:]] == [end for _, end in windows[:-1]]
    assert (windows[0][0], windows[-1][1]) == (DAY, DAY + timedelta(days=3))


def test_features_come_back_with_the_events_own_time_in_order(
    contract: PublishedContract, retrieved: pd.DataFrame, parcels: pd.DataFrame
) -> None:
    windows = day_windows(DAY, DAY + timedelta(days=1))
    store = FakeStore(retrieved)
    frame = FeatureStoreClient(NOWHERE, store).features_as_of(contract, QUERY, windows)
    assert frame["parcel_id"].tolist() == [0, 1, 2]
    assert frame["event_timestamp"].tolist() == parcels["event_timestamp"].head(3).tolist()
    assert frame["parcel_stops"].tolist() == [2.0, 0.0, 1.0]  # the null became the contract's default
    expected = ["parcel_id", "lost", "event_timestamp", "asked_at", *contract.service.feature_names]
    assert list(frame.columns) == expected
    assert store.asked == [QUERY.statement(*windows[0])]


def test_a_null_where_the_contract_says_fail_is_refused(
    contract: PublishedContract, retrieved: pd.DataFrame
) -> None:
    client = FeatureStoreClient(NOWHERE, FakeStore(retrieved.assign(parcel_weight_kg=None)))
    with pytest.raises(SchemaMismatchError, match="parcel_weight_kg"):
        client.features_as_of(contract, QUERY, [(DAY, DAY + timedelta(days=1))])


def test_a_feature_the_store_does_not_give_is_named(
    contract: PublishedContract, retrieved: pd.DataFrame
) -> None:
    client = FeatureStoreClient(NOWHERE, FakeStore(retrieved.drop(columns="parcel_carrier")))
    with pytest.raises(SchemaMismatchError, match=r"missing \['parcel_carrier'\], unexpected \[\]"):
        client.features_as_of(contract, QUERY, [(DAY, DAY + timedelta(days=1))])


def test_a_feature_the_contract_does_not_list_is_named(
    contract: PublishedContract, retrieved: pd.DataFrame
) -> None:
    client = FeatureStoreClient(NOWHERE, FakeStore(retrieved.assign(parcel_lost_before=1)))
    with pytest.raises(SchemaMismatchError, match=r"unexpected \['parcel_lost_before'\]"):
        client.features_as_of(contract, QUERY, [(DAY, DAY + timedelta(days=1))])


def test_an_empty_window_says_which(contract: PublishedContract, retrieved: pd.DataFrame) -> None:
    client = FeatureStoreClient(NOWHERE, FakeStore(retrieved.head(0)))
    with pytest.raises(EmptyWindowError, match="fct_parcels has no rows with labels known at 2024-01-10"):
        client.features_as_of(contract, QUERY, day_windows(DAY, DAY + timedelta(days=2)))


def test_the_contract_is_the_tag_of_the_feature_service(retrieved: pd.DataFrame) -> None:
    text = json.dumps(CONTRACT)
    tagged = FakeStore(retrieved, {"contract": text})
    assert FeatureStoreClient(NOWHERE, tagged).contract("parcel_loss_v1").text == text
    with pytest.raises(FeatureStoreError, match="no tag 'contract'"):
        FeatureStoreClient(NOWHERE, FakeStore(retrieved)).contract("parcel_loss_v1")


def test_a_database_that_does_not_answer_is_one_clear_error() -> None:
    with pytest.raises(FeatureStoreError, match=r"127\.0\.0\.1:1/feature_store failed") as caught:
        FeatureStoreClient(NOWHERE).dataset_id()
    assert "secret-password" not in str(caught.value)


def test_other_zones_mean_the_same_window() -> None:
    east = timezone(timedelta(hours=7))
    statement = QUERY.statement(datetime(2024, 1, 1, 7, tzinfo=east), datetime(2024, 1, 2, 7, tzinfo=east))
    assert "timestamptz '2024-01-01T07:00:00+07:00'" in statement
