"""What the notebooks show is computed by tested code."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import pytest
from conftest import FEATURES, FakeFeatureStore, make_transactions
from src.exploration import fraud_rate_by_band, latest_labelled, redundancy, separation

from common_ml_utils.errors import OneClassLabelsError


def test_the_latest_labelled_days_end_a_delay_before_the_data_does(store: FakeFeatureStore) -> None:
    frame = latest_labelled(store, 3)
    assert frame["event_timestamp"].min() >= datetime(2024, 1, 31, tzinfo=UTC)
    assert frame["event_timestamp"].max() < datetime(2024, 2, 3, tzinfo=UTC)
    assert len(frame) > 100


def test_separation_finds_the_feature_that_tells_frauds_apart_either_way_round() -> None:
    frame = make_transactions(days=5)
    frame["tx_is_weekend"] = 1.0 - frame["is_fraud"]  # low for frauds: as telling as high
    table = separation(frame, FEATURES)
    assert table.index[0] == "tx_is_weekend"
    assert table["auc_roc"].iloc[0] == 1.0
    assert table["auc_roc"].min() >= 0.5
    assert table.loc["tx_is_weekend", "values"] == 2


def test_one_class_separates_nothing() -> None:
    with pytest.raises(OneClassLabelsError):
        separation(make_transactions(days=1).assign(is_fraud=0), FEATURES)


def test_bands_hold_all_rows_and_their_fraud_rate() -> None:
    frame = pd.DataFrame({"tx_amount": [1.0, 2.0, 3.0, 4.0], "is_fraud": [0, 0, 0, 1]})
    bands = fraud_rate_by_band(frame, "tx_amount", bands=2)
    assert bands["rows"].tolist() == [2, 2]
    assert bands["fraud_rate"].tolist() == [0.0, 0.5]


def test_redundancy_is_one_with_itself_and_between_monotone_features() -> None:
    frame = make_transactions(days=2)
    frame["customer_tx_amount_mean_1d"] = frame["tx_amount"] ** 2
    table = redundancy(frame, ["tx_amount", "customer_tx_amount_mean_1d"])
    assert table.to_numpy().min() == pytest.approx(1.0)
