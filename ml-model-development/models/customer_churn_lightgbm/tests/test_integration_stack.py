"""The churn project on the running stack; it needs subscribers loaded, features built and Feast applied."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import mlflow
import psycopg
import pytest
from psycopg import sql
from pydantic import ValidationError
from src import evaluate, train, what_if
from src.config import IDENTITY, ChurnTrainingSettings

from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.promotion import project_gate
from common_ml_utils.promotion.ledger import PromotionLedger

pytestmark = pytest.mark.integration


@pytest.fixture
def stack() -> ChurnTrainingSettings:
    try:
        return ChurnTrainingSettings()
    except ValidationError as error:
        missing = sorted(str(problem["loc"][0]) for problem in error.errors())
        pytest.fail(f"the stack's environment is not loaded (source its stack.env); not set: {missing}")


@pytest.fixture
def isolated(
    stack: ChurnTrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ChurnTrainingSettings]:
    """Names and folders of this test's own, so that nothing in production moves."""
    name = f"test-churn-{uuid.uuid4().hex[:8]}"
    schema = name.replace("-", "_")
    identity = replace(IDENTITY, model_name=name, experiment=name)
    monkeypatch.setattr(train.ChurnTrainer, "identity", identity)
    monkeypatch.setattr(evaluate, "IDENTITY", identity)
    monkeypatch.setattr(what_if, "IDENTITY", identity)
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path / "reports"))
    monkeypatch.setattr(project_gate, "PromotionLedger", functools.partial(PromotionLedger, schema=schema))
    yield stack.model_copy(update={"data_dir": tmp_path / "data", "reports_dir": tmp_path / "reports"})
    with psycopg.connect(**stack.decisions_db.connection_arguments()) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
    client = mlflow.MlflowClient(tracking_uri=stack.mlflow_tracking_uri)
    client.delete_registered_model(name)
    if experiment := client.get_experiment_by_name(name):
        client.delete_experiment(experiment.experiment_id)


def test_five_folds_reach_the_published_auc_and_the_gate_promotes(isolated: ChurnTrainingSettings) -> None:
    client = FeatureStoreClient(isolated.feature_store_db)
    known = client.query("SELECT max(label_known_at) AS known FROM labels.fct_churn_labels")[0]["known"]
    assert isinstance(known, datetime), "load the subscribers, run dbt and apply Feast first"
    outcome = train.ChurnTrainer(isolated, client, known).train()
    report = json.loads((isolated.reports_dir / "churn" / "train.json").read_text())
    assert len(report["validation"]) == 5
    assert report["validation_mean"]["validation_auc_roc"] >= 0.84
    assert report["rows"]["training"] + report["rows"]["holdout"] == 7043
    evaluate.gate(isolated)
    verdict = json.loads((isolated.reports_dir / "churn" / "gate.json").read_text())
    assert (verdict["verdict"], verdict["champion_after"]) == ("promote", outcome.version), verdict["reasons"]
    assert what_if.main(["--subscriber", "3", "--contract", "one_year"]) == 0
    answer = json.loads((isolated.reports_dir / "churn" / "what_if-subscriber-3.json").read_text())
    assert answer["bundle_sha256"] == outcome.bundle_sha256  # the champion was asked
    assert answer["changed"]["row"]["subscriber_contract"] == "One year"
