"""The gate on the running stack: a clean retraining passes, four that were tampered with are refused."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psycopg
import pytest
from psycopg import sql
from pydantic import ValidationError
from src import evaluate, train
from src.config import IDENTITY, FraudHyperparameters, FraudTrainingSettings, FraudWindows
from src.data_loader import LABEL, load_labelled

from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import CHAMPION, PREVIOUS, STAGING, ModelRegistry
from common_ml_utils.promotion import project_gate
from common_ml_utils.promotion.commands import problems_of, roll_back
from common_ml_utils.promotion.ledger import PromotionLedger

pytestmark = pytest.mark.integration
Sabotage = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass
class Bench:
    """A project of this test's own on the stack's data: each interval is fetched once, then tampered with."""

    settings: FraudTrainingSettings
    client: FeatureStoreClient
    registry: ModelRegistry
    ledger: PromotionLedger
    monkeypatch: pytest.MonkeyPatch
    fetched: dict[Any, pd.DataFrame]

    @property
    def name(self) -> str:
        return evaluate.IDENTITY.model_name

    def train(self, sabotage: Sabotage, days_ago: int = 0, seed: int = 0) -> None:
        def load(client: FeatureStoreClient, contract: Any, wanted: Any, as_of: datetime) -> pd.DataFrame:
            if as_of not in self.fetched:
                self.fetched[as_of] = load_labelled(client, contract, wanted, as_of)
            return sabotage(self.fetched[as_of].copy())

        self.monkeypatch.setattr(train, "load_labelled", load)
        after_last = datetime.combine(self.client.loaded_days()[1] + timedelta(days=1), time(), UTC)
        parameters = self.settings.hyperparameters.model_copy(update={"seed": seed})
        settings = self.settings.model_copy(update={"hyperparameters": parameters})
        train.FraudTrainer(settings, self.client, after_last - timedelta(days=days_ago)).train()

    def judge(self) -> dict[str, Any]:
        evaluate.gate(self.settings)
        report: dict[str, Any] = json.loads((self.settings.reports_dir / "fraud" / "gate.json").read_text())
        return report

    def aliases(self) -> list[int | None]:
        return [self.registry.version_of(self.name, alias) for alias in (STAGING, CHAMPION, PREVIOUS)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    try:
        stack = FraudTrainingSettings()
    except ValidationError as error:
        missing = sorted(str(problem["loc"][0]) for problem in error.errors())
        pytest.fail(f"the stack's environment is not loaded (source its stack.env); not set: {missing}")
    name = f"test-gate-{uuid.uuid4().hex[:8]}"
    schema = name.replace("-", "_")
    identity = replace(IDENTITY, model_name=name, experiment=name)
    monkeypatch.setattr(train.FraudTrainer, "identity", identity)
    monkeypatch.setattr(evaluate, "IDENTITY", identity)
    monkeypatch.setattr(project_gate, "PromotionLedger", functools.partial(PromotionLedger, schema=schema))
    settings = stack.model_copy(
        update={
            "data_dir": tmp_path / "data",
            "reports_dir": tmp_path / "reports",
            "windows": FraudWindows(training_days=11, validation_days=2, holdout_days=4),
            "hyperparameters": FraudHyperparameters(n_estimators=40, max_bin=256),
            "gate": stack.gate.model_copy(update={"floor": 0.3}),
        }
    )
    registry = ModelRegistry(stack.mlflow_tracking_uri)
    ledger = PromotionLedger(stack.decisions_db, schema)
    yield Bench(settings, FeatureStoreClient(stack.feature_store_db), registry, ledger, monkeypatch, {})
    with psycopg.connect(**stack.decisions_db.connection_arguments()) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
    mlflow_client = mlflow.MlflowClient(tracking_uri=stack.mlflow_tracking_uri)
    mlflow_client.delete_registered_model(name)
    if experiment := mlflow_client.get_experiment_by_name(name):
        mlflow_client.delete_experiment(experiment.experiment_id)


def clean(rows: pd.DataFrame) -> pd.DataFrame:
    return rows


def flipped(rows: pd.DataFrame) -> pd.DataFrame:
    chosen = np.random.default_rng(3).random(len(rows)) < 0.01
    return rows.assign(**{LABEL: (rows[LABEL] ^ chosen).astype("int8")})


def scaled(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(customer_tx_amount_mean_7d=rows["customer_tx_amount_mean_7d"] * 10)


def leaked(rows: pd.DataFrame) -> pd.DataFrame:
    noise = np.random.default_rng(4).uniform(0, 0.4, len(rows))
    return rows.assign(terminal_fraud_risk_1d=0.6 * rows[LABEL] + noise)


def test_clean_retrainings_pass_and_four_sabotages_are_refused(bench: Bench) -> None:
    bench.train(clean)
    assert bench.judge()["verdict"] == "promote"
    bench.train(clean, seed=1)
    report = bench.judge()
    assert report["verdict"] == "promote", report["reasons"]
    assert (
        report["comparison"]["lower"] <= report["comparison"]["difference"] <= report["comparison"]["upper"]
    )
    outcomes = {finding["guard"]: finding["outcome"] for finding in report["findings"]}
    expected = {"labels", "training values", "staleness", "leak", "signature", "parity", "latency", "shift"}
    assert expected <= set(outcomes)
    assert (bench.settings.reports_dir / "fraud" / "gate.html").read_text().count("<svg") == 1

    sabotages: dict[str, tuple[Sabotage, int]] = {
        "labels": (flipped, 0),
        "training values": (scaled, 0),
        "leak": (leaked, 0),
        "staleness": (clean, 30),
    }
    for version, (guard, (sabotage, days_ago)) in enumerate(sabotages.items(), start=3):
        bench.train(sabotage, days_ago=days_ago)
        report = bench.judge()
        refusing = {f["guard"]: f["message"] for f in report["findings"] if f["outcome"] == "refuse"}
        assert report["verdict"] == "refuse", guard
        assert guard in refusing, refusing
        assert bench.aliases() == [version, 2, 1]
    assert "30.0 days further" in refusing["staleness"]

    back = roll_back(bench.registry, bench.ledger, bench.name, "Ada", "a trial")
    assert (back.version, bench.aliases()) == (1, [6, 1, 2])
    rows = bench.ledger.rows()
    assert [row["decision"] for row in rows] == ["promote", "promote", *["refuse"] * 4, "rollback"]
    assert problems_of(rows, bench.registry.champions(), bench.name) == []
    bench.registry.promote(bench.name, 3)
    [problem] = problems_of(rows, bench.registry.champions(), bench.name)
    assert "version 3 is champion, but the ledger's entry 7 put version 1 into production" in problem
