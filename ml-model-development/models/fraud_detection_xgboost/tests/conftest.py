"""A feature store in memory with 40 days of made-up transactions, and a registry that only remembers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from src.config import FraudHyperparameters, FraudTrainingSettings
from src.train import FraudTrainer

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient, LabelPolicy
from common_ml_utils.test_doubles import ListRegistry, unreachable_places

DAYS = 40
FIRST_DAY = date(2024, 1, 1)
WINDOWS = (1, 7, 30)
FEATURES = [
    "tx_amount",
    "tx_is_weekend",
    "tx_is_night",
    *[f"customer_tx_count_{days}d" for days in WINDOWS],
    *[f"customer_tx_amount_mean_{days}d" for days in WINDOWS],
    *[f"terminal_tx_count_{days}d" for days in WINDOWS],
    *[f"terminal_labelled_tx_count_{days}d" for days in WINDOWS],
    *[f"terminal_fraud_risk_{days}d" for days in WINDOWS],
]
CONTRACT = {
    "name": "fraud_detection_v1",
    "version": 1,
    "entities": [
        {"name": "customer", "join_key": "customer_id", "type": "int64"},
        {"name": "terminal", "join_key": "terminal_id", "type": "int64"},
    ],
    "request": [{"name": "tx_amount", "type": "float64"}, {"name": "tx_timestamp", "type": "unix_timestamp"}],
    "views": [],
    "features": [{"name": name, "source": "made_up", "type": "float64"} for name in FEATURES],
}


def make_transactions(days: int = DAYS, a_day: int = 60, seed: int = 11) -> pd.DataFrame:
    """Return transactions with features; frauds have higher amounts and riskier terminals."""
    rng = np.random.default_rng(seed)
    rows = days * a_day
    fraud = (rng.random(rows) < 0.08).astype(int)
    start = pd.Timestamp(FIRST_DAY, tz="UTC")
    times = start + pd.to_timedelta(np.sort(rng.integers(0, days * 86400, rows)), unit="s")
    frame = pd.DataFrame(
        {
            "transaction_id": np.arange(rows),
            "customer_id": rng.integers(0, 50, rows),
            "terminal_id": rng.integers(0, 80, rows),
            "event_timestamp": times,
            "tx_timestamp": times.astype("int64") / 1e9,
            "tx_amount": np.round(rng.gamma(2, 20, rows) * (1 + 4 * fraud), 2),
            "tx_is_weekend": (times.weekday >= 5).astype(float),
            "tx_is_night": (times.hour <= 6).astype(float),
            "is_fraud": fraud,
            "label_known_at": times + pd.Timedelta(days=7),
        }
    )
    for days_back in WINDOWS:
        frame[f"customer_tx_count_{days_back}d"] = days_back + 1.0
        frame[f"customer_tx_amount_mean_{days_back}d"] = rng.gamma(2, 20, rows)
        frame[f"terminal_tx_count_{days_back}d"] = days_back + 1.0
        frame[f"terminal_labelled_tx_count_{days_back}d"] = float(days_back)
        frame[f"terminal_fraud_risk_{days_back}d"] = np.clip(fraud * 0.3 + rng.random(rows) * 0.4, 0, 1)
    return frame


class FakeFeatureStore(FeatureStoreClient):
    """Answers from a frame what the feature store would answer."""

    def __init__(self, transactions: pd.DataFrame) -> None:
        self.transactions = transactions
        self.published = PublishedContract.parse(json.dumps(CONTRACT))

    def contract(self, service_name: str) -> PublishedContract:
        assert service_name == "fraud_detection_v1"
        return self.published

    def label_policy(self, label_name: str) -> LabelPolicy:
        assert label_name == "fraud"
        return LabelPolicy(label_name, 7, "1")

    def dataset_id(self) -> str:
        return "made up"

    def loaded_days(self) -> tuple[date, date]:
        times = self.transactions["event_timestamp"]
        return times.min().date(), times.max().date()

    def features_as_of(
        self,
        contract: PublishedContract,
        entities: EntityQuery,
        windows: Sequence[tuple[datetime, datetime]],
        description: str = "features",
    ) -> pd.DataFrame:
        times = self.transactions["event_timestamp"]
        wanted = pd.Series(False, index=times.index)
        for start, end in windows:
            wanted |= (times >= start) & (times < end)
        if entities.labels_known_as_of is not None:
            wanted &= self.transactions["label_known_at"] <= entities.labels_known_as_of
        if not wanted.any():
            raise EmptyWindowError("no rows")
        kept = [*entities.columns, "event_timestamp", "tx_timestamp", *contract.service.feature_names]
        present = [name for name in kept if name in self.transactions.columns]
        return self.transactions.loc[wanted, present].reset_index(drop=True)

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        if "raw.transaction_labels" in statement:
            frauds = int(self.transactions["is_fraud"].sum())
            return [{"transactions": len(self.transactions), "frauds": frauds}]
        assert "is_fraud = 1" in statement
        frauds = self.transactions[self.transactions["is_fraud"] == 1]
        frauds = frauds[
            (frauds["event_timestamp"] >= parameters[0]) & (frauds["event_timestamp"] < parameters[1])
        ]
        days = (frauds["event_timestamp"].astype("datetime64[s, UTC]").astype("int64") // 86400).to_numpy()
        known = pd.DataFrame({"customer_id": frauds["customer_id"].to_numpy(), "day": days})
        return known.drop_duplicates().to_dict("records")


@pytest.fixture
def transactions() -> pd.DataFrame:
    return make_transactions()


@pytest.fixture
def store(transactions: pd.DataFrame) -> FakeFeatureStore:
    return FakeFeatureStore(transactions)


def make_settings(folder: Path) -> FraudTrainingSettings:
    """Return settings of no real place: nothing in a unit test may reach one."""
    return FraudTrainingSettings(
        **unreachable_places(folder),
        hyperparameters=FraudHyperparameters(n_estimators=20, n_jobs=1, max_bin=64),
    )


@pytest.fixture
def settings(tmp_path: Path) -> FraudTrainingSettings:
    return make_settings(tmp_path)


def run_training(
    settings: FraudTrainingSettings,
    store: FakeFeatureStore,
    registry: ListRegistry,
    as_of: datetime | None = None,
) -> None:
    """Train as the command does, but register in the fake."""
    trainer = FraudTrainer(settings, store, as_of)
    trainer.registry = registry
    trainer.train()


@dataclass
class Trained:
    """One finished training: look, don't touch."""

    settings: FraudTrainingSettings
    store: FakeFeatureStore
    registry: ListRegistry


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    settings = make_settings(tmp_path_factory.mktemp("trained"))
    done = Trained(settings, FakeFeatureStore(make_transactions()), ListRegistry())
    run_training(done.settings, done.store, done.registry)
    return done
