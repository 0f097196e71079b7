"""A feature store in memory with made-up subscribers, and a registry that only remembers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from src.config import ChurnHyperparameters, ChurnTrainingSettings
from src.train import ChurnTrainer

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient, LabelPolicy
from common_ml_utils.test_doubles import ListRegistry, unreachable_places

SNAPSHOT = pd.Timestamp("2024-05-01", tz="UTC")
AS_OF = datetime(2024, 6, 1, tzinfo=UTC)
KINDS = {
    "subscriber_is_senior": "int64",
    "subscriber_tenure_months": "int64",
    "subscriber_contract": "string",
    "subscriber_payment_method": "string",
    "subscriber_monthly_charges_usd": "float64",
}
CONTRACT = {
    "name": "customer_churn_v1",
    "version": 1,
    "entities": [{"name": "subscriber", "join_key": "subscriber_id", "type": "int64"}],
    "request": [],
    "views": [],
    "features": [{"name": name, "source": "profile", "type": kind} for name, kind in KINDS.items()],
}


def make_subscribers(rows: int = 900, seed: int = 4) -> pd.DataFrame:
    """Return labelled subscribers; short monthly contracts churn most."""
    rng = np.random.default_rng(seed)
    contract = rng.choice(["Month-to-month", "One year", "Two year"], rows)
    tenure = rng.integers(0, 73, rows)
    risk = 1 / (1 + np.exp(0.5 - 1.8 * (contract == "Month-to-month") + 0.05 * tenure))
    return pd.DataFrame(
        {
            "subscriber_id": np.arange(1, rows + 1),
            "event_timestamp": SNAPSHOT,
            "subscriber_is_senior": rng.integers(0, 2, rows).astype(float),
            "subscriber_tenure_months": tenure.astype(float),
            "subscriber_contract": contract,
            "subscriber_payment_method": rng.choice(
                np.array(["Electronic check", "Mailed check", None], dtype=object), rows
            ),
            "subscriber_monthly_charges_usd": rng.gamma(4, 15, rows),
            "churned": (rng.random(rows) < risk).astype(int),
            "label_known_at": SNAPSHOT + pd.Timedelta(days=30),
        }
    )


class FakeFeatureStore(FeatureStoreClient):
    """Answers from a frame what the feature store would answer."""

    def __init__(self, subscribers: pd.DataFrame) -> None:
        self.subscribers = subscribers
        self.published = PublishedContract.parse(json.dumps(CONTRACT))
        self.asked: list[EntityQuery] = []

    def contract(self, service_name: str) -> PublishedContract:
        assert service_name == "customer_churn_v1"
        return self.published

    def label_policy(self, label_name: str) -> LabelPolicy:
        assert label_name == "churn"
        return LabelPolicy(label_name, 30, "1")

    def dataset_id(self) -> str:
        return "made up"

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        assert "labels.fct_churn_labels" in statement
        known = self.subscribers[self.subscribers["label_known_at"] <= parameters[0]]
        if known.empty:
            return [{"first": None, "last": None}]
        return [{"first": known["event_timestamp"].min(), "last": known["event_timestamp"].max()}]

    def features_as_of(
        self,
        contract: PublishedContract,
        entities: EntityQuery,
        windows: Sequence[tuple[datetime, datetime]],
        description: str = "features",
    ) -> pd.DataFrame:
        self.asked.append(entities)
        [(start, end)] = windows
        times = self.subscribers["event_timestamp"]
        wanted = (times >= start) & (times < end)
        if entities.labels_known_as_of is not None:
            wanted &= self.subscribers["label_known_at"] <= entities.labels_known_as_of
        if not wanted.any():
            raise EmptyWindowError("no rows")
        kept = [*entities.columns, "event_timestamp", *contract.service.feature_names]
        present = [name for name in kept if name in self.subscribers.columns]
        return self.subscribers.loc[wanted, present].reset_index(drop=True)


def make_settings(folder: Path) -> ChurnTrainingSettings:
    """Return settings of no real place: nothing in a unit test may reach one."""
    return ChurnTrainingSettings(
        **unreachable_places(folder),
        hyperparameters=ChurnHyperparameters(n_estimators=30, n_jobs=1),
    )


@pytest.fixture
def settings(tmp_path: Path) -> ChurnTrainingSettings:
    return make_settings(tmp_path)


@pytest.fixture
def subscribers() -> pd.DataFrame:
    return make_subscribers()


def run_training(
    settings: ChurnTrainingSettings, store: FakeFeatureStore, registry: ListRegistry, as_of: datetime = AS_OF
) -> None:
    """Train as the command does, but register in the fake."""
    trainer = ChurnTrainer(settings, store, as_of)
    trainer.registry = registry
    trainer.train()


@dataclass
class Trained:
    """One finished training: look, don't touch."""

    settings: ChurnTrainingSettings
    store: FakeFeatureStore
    registry: ListRegistry


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    settings = make_settings(tmp_path_factory.mktemp("trained"))
    done = Trained(settings, FakeFeatureStore(make_subscribers()), ListRegistry())
    run_training(done.settings, done.store, done.registry)
    return done
