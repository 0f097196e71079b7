"""The fraud project on the running stack; it needs transactions loaded, features built and Feast applied."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psycopg
import pytest
from psycopg import sql
from pydantic import ValidationError
from src import evaluate, predict_batch, train
from src.config import FEATURE_SERVICE, IDENTITY, FraudHyperparameters, FraudTrainingSettings, FraudWindows
from src.data_loader import load_day
from src.handbook import TARGETS, is_full_set, single_split
from src.handbook_report import published
from src.landing import read_landing
from src.windows import PLATFORM_FEATURES, platform_features

from common_ml_utils.batch.command import predict_day
from common_ml_utils.errors import FeatureStoreError
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.notebooks import execute, notebooks_in
from common_ml_utils.promotion import project_gate
from common_ml_utils.promotion.ledger import PromotionLedger

pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def stack() -> FraudTrainingSettings:
    try:
        return FraudTrainingSettings()
    except ValidationError as error:
        missing = sorted(str(problem["loc"][0]) for problem in error.errors())
        pytest.fail(f"the stack's environment is not loaded (source its stack.env); not set: {missing}")


@pytest.fixture(scope="session")
def client(stack: FraudTrainingSettings) -> FeatureStoreClient:
    client = FeatureStoreClient(stack.feature_store_db)
    try:
        client.loaded_days()
        client.contract(FEATURE_SERVICE)
    except FeatureStoreError as error:
        pytest.fail(f"load transactions, run dbt and apply Feast first: {error}")
    return client


@pytest.fixture(scope="session")
def last_day(client: FeatureStoreClient) -> date:
    return client.loaded_days()[1]


def windows_of(frame: pd.DataFrame, end: datetime, days: int) -> pd.DataFrame:
    """Return the transactions of the `days` full days before the midnight `end`."""
    return frame[(frame["time"] >= end - timedelta(days=days)) & (frame["time"] < end)]


def oracle(row: pd.Series, history: pd.DataFrame) -> dict[str, float]:
    """Compute a transaction's 18 features from raw transactions alone, by the definitions."""
    now = row["time"]
    midnight = now.normalize()
    customer = history[(history["customer_id"] == row["customer_id"]) & (history["time"] < now)]
    terminal = history[(history["terminal_id"] == row["terminal_id"]) & (history["time"] < now)]
    features = {
        "tx_amount": row["tx_amount"],
        "tx_is_weekend": float(now.weekday() >= 5),
        "tx_is_night": float(now.hour <= 6),
    }
    for days in (1, 7, 30):
        mine = pd.concat([windows_of(customer, midnight, days), customer[customer["time"] >= midnight]])
        theirs = pd.concat([windows_of(terminal, midnight, days), terminal[terminal["time"] >= midnight]])
        labelled = windows_of(terminal, midnight - timedelta(days=7), days)
        features[f"customer_tx_count_{days}d"] = len(mine) + 1
        features[f"customer_tx_amount_mean_{days}d"] = (mine["tx_amount"].sum() + row["tx_amount"]) / (
            len(mine) + 1
        )
        features[f"terminal_tx_count_{days}d"] = len(theirs) + 1
        features[f"terminal_labelled_tx_count_{days}d"] = len(labelled)
        features[f"terminal_fraud_risk_{days}d"] = labelled["is_fraud"].mean() if len(labelled) else 0.0
    return features


def test_features_of_the_store_equal_an_oracle_over_the_raw_rows(
    client: FeatureStoreClient, last_day: date
) -> None:
    day = load_day(client, client.contract(FEATURE_SERVICE), last_day)
    sample = day.iloc[np.linspace(0, len(day) - 1, 60).astype(int)]
    since = datetime.combine(last_day, time(), UTC) - timedelta(days=38)
    history = pd.DataFrame(
        client.query(
            "SELECT t.customer_id, t.terminal_id, t.tx_datetime AS time, t.tx_amount, l.is_fraud"
            " FROM raw.transactions t JOIN raw.transaction_labels l USING (transaction_id)"
            " WHERE t.tx_datetime >= %s AND (t.customer_id = ANY(%s) OR t.terminal_id = ANY(%s))",
            [since, sample["customer_id"].tolist(), sample["terminal_id"].tolist()],
        )
    )
    history["time"] = pd.to_datetime(history["time"], utc=True)
    for _, row in sample.rename(columns={"event_timestamp": "time"}).iterrows():
        for name, expected in oracle(row, history).items():
            assert row[name] == pytest.approx(expected, abs=1e-9), (row["transaction_id"], name)


@pytest.fixture
def isolated(
    stack: FraudTrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FraudTrainingSettings]:
    """Short intervals, and names and folders of this test's own, so that nothing in production moves."""
    name = f"test-fraud-{uuid.uuid4().hex[:8]}"
    schema = name.replace("-", "_")
    identity = replace(IDENTITY, model_name=name, experiment=name)
    monkeypatch.setattr(train.FraudTrainer, "identity", identity)
    for module in (evaluate, predict_batch):
        monkeypatch.setattr(module, "IDENTITY", identity)
    monkeypatch.setattr(project_gate, "PromotionLedger", functools.partial(PromotionLedger, schema=schema))
    yield stack.model_copy(
        update={
            "data_dir": tmp_path / "data",
            "reports_dir": tmp_path / "reports",
            "windows": FraudWindows(training_days=13, validation_days=3, holdout_days=3),
            "hyperparameters": FraudHyperparameters(n_estimators=100),
            "gate": stack.gate.model_copy(update={"floor": 0.3}),
        }
    )
    with psycopg.connect(**stack.decisions_db.connection_arguments()) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
        connection.execute("DELETE FROM scoring.batch_scores WHERE model_name = %s", [name])
    mlflow_client = mlflow.MlflowClient(tracking_uri=stack.mlflow_tracking_uri)
    mlflow_client.delete_registered_model(name)
    if experiment := mlflow_client.get_experiment_by_name(name):
        mlflow_client.delete_experiment(experiment.experiment_id)


def scores_of(settings: FraudTrainingSettings, day: date) -> pd.DataFrame:
    with psycopg.connect(**settings.decisions_db.connection_arguments()) as connection:
        rows = connection.execute(
            "SELECT entity_key, model_version, bundle_sha256, entity_ids, request, features, score"
            " FROM scoring.batch_scores WHERE model_name = %s AND data_date = %s ORDER BY entity_key",
            [predict_batch.IDENTITY.model_name, day],
        ).fetchall()
    names = ["entity_key", "model_version", "bundle_sha256", "entity_ids", "request", "features", "score"]
    return pd.DataFrame(rows, columns=names)


def test_train_gate_and_batch_prediction_from_end_to_end(
    isolated: FraudTrainingSettings, client: FeatureStoreClient, last_day: date
) -> None:
    outcome = train.FraudTrainer(isolated, client, None).train()
    evaluate.gate(isolated)
    report = json.loads((isolated.reports_dir / "fraud" / "gate.json").read_text())
    assert (report["verdict"], report["champion_after"]) == ("promote", outcome.version), report["reasons"]

    rows = predict_day(predict_batch.project(), isolated, last_day).rows
    first = scores_of(isolated, last_day)
    counted = client.query("SELECT count(*) AS n FROM raw.transactions WHERE tx_date = %s", [last_day])
    assert len(first) == rows == counted[0]["n"]
    assert set(first["bundle_sha256"]) == {outcome.bundle_sha256}
    assert predict_day(predict_batch.project(), isolated, last_day).rows == rows
    pd.testing.assert_frame_equal(scores_of(isolated, last_day), first)

    again = train.FraudTrainer(isolated, client, None).train()
    assert again.metrics == outcome.metrics
    evaluate.gate(isolated)
    report = json.loads((isolated.reports_dir / "fraud" / "gate.json").read_text())
    assert (report["verdict"], report["champion_after"]) == ("refuse", outcome.version)
    assert "not better" in report["reasons"][0]


def test_the_handbooks_split_reaches_the_published_figures_on_the_full_set(
    stack: FraudTrainingSettings, client: FeatureStoreClient, tmp_path: Path
) -> None:
    settings = stack.model_copy(update={"reports_dir": tmp_path})
    single_split(settings)
    report = json.loads((tmp_path / "fraud" / "handbook.json").read_text())
    rows = {name: (counts["transactions"], counts["frauds"]) for name, counts in report["rows"].items()}
    if is_full_set(client):
        assert rows == {name: tuple(counts) for name, counts in published()["single split rows"].items()}
        for name, target in TARGETS.items():
            assert report["metrics"][name] >= target, name
    else:
        assert report["full_set"] is False
        assert min(positives for _, positives in rows.values()) > 0


def test_features_from_the_landing_files_equal_the_stores(
    stack: FraudTrainingSettings, client: FeatureStoreClient, last_day: date
) -> None:
    raw = read_landing(stack.data_dir / "landing" / "transactions").transactions
    ours = platform_features(raw)[raw["day"] == raw["day"].max()].reset_index(drop=True)
    theirs = load_day(client, client.contract(FEATURE_SERVICE), last_day)
    names = [name for name in PLATFORM_FEATURES if name != "tx_is_weekend"]  # of the Handbook's calendar
    assert len(ours) > 0
    np.testing.assert_allclose(ours[names], theirs[names].astype(float), rtol=0, atol=1e-9)


def test_the_notebooks_run_on_the_stacks_data(
    client: FeatureStoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer days than in production: what is tested is that they run, not how good the model is.
    monkeypatch.setenv("TRAINING_WINDOWS__TRAINING_DAYS", "18")
    monkeypatch.setenv("TRAINING_WINDOWS__VALIDATION_DAYS", "3")
    monkeypatch.setenv("TRAINING_WINDOWS__HOLDOUT_DAYS", "3")
    folder = Path(train.__file__).parents[1] / "notebooks"
    paths = notebooks_in(folder)
    assert [path.name[:2] for path in paths] == ["01", "02", "03"]
    for path in paths:
        executed = execute(path, seconds=120)
        images = [
            output
            for cell in executed.cells
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        assert len(images) >= 2, path.name
