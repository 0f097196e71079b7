"""The rows that batch prediction writes."""

from __future__ import annotations

import json
from datetime import date

import numpy as np
import pytest
from conftest import FEATURES, FakeFeatureStore, Trained
from src.config import FraudTrainingSettings
from src.data_loader import load_day
from src.predict_batch import COLUMNS, batch_rows, main, predict_batch, replace_day

from common_ml_utils.errors import ModelDevelopmentError, RegistryError
from common_ml_utils.mlflow_utils import RegisteredBundle

DAY = date(2024, 2, 9)


@pytest.fixture
def champion(trained: Trained) -> RegisteredBundle:
    return trained.registry.latest()


def test_a_row_holds_all_that_is_needed_to_score_it_again(
    store: FakeFeatureStore, champion: RegisteredBundle
) -> None:
    frame = load_day(store, champion.bundle.contract, DAY)
    rows = list(batch_rows(champion, DAY, frame, champion.bundle.score_frame(frame)))
    assert len(rows) == len(frame)
    row = dict(zip(COLUMNS.split(", "), rows[0], strict=True))
    assert row["entity_key"] == str(frame["transaction_id"][0])
    assert (row["model_name"], row["model_version"]) == ("fraud-detection-model", 1)
    assert row["bundle_sha256"] == champion.bundle.sha256
    assert json.loads(row["entity_ids"]) == {
        "customer_id": frame["customer_id"][0],
        "terminal_id": frame["terminal_id"][0],
    }
    assert set(json.loads(row["request"])) == {"tx_amount", "tx_timestamp"}
    features = json.loads(row["features"])
    assert list(features) == FEATURES
    assert champion.bundle.score_row(features) == pytest.approx(row["score"], abs=1e-6)


def test_nan_is_written_as_null(store: FakeFeatureStore, champion: RegisteredBundle) -> None:
    frame = load_day(store, champion.bundle.contract, DAY).assign(terminal_fraud_risk_1d=np.nan)
    [features] = {row[7] for row in list(batch_rows(champion, DAY, frame, np.zeros(len(frame))))[:1]}
    assert json.loads(features)["terminal_fraud_risk_1d"] is None


def test_an_unreachable_database_is_one_clear_error(
    settings: FraudTrainingSettings, champion: RegisteredBundle
) -> None:
    with pytest.raises(ModelDevelopmentError, match="the scores of 2024-02-09 were not written"):
        replace_day(settings.decisions_db, champion, DAY, [])


def test_an_unreachable_registry_is_one_clear_error(settings: FraudTrainingSettings) -> None:
    with pytest.raises(RegistryError):
        predict_batch(settings, DAY)


def test_a_wrong_date_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--date", "yesterday"])
    assert "--date" in capsys.readouterr().err
