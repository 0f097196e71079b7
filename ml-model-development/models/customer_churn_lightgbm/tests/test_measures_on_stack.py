"""What the churn project promises, measured on the running stack; nothing is registered."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from src import cross_validation, what_if
from src.config import FEATURE_SERVICE, ChurnTrainingSettings
from src.cross_validation import Subject
from src.data_loader import LABEL, load_labelled
from src.train import ChurnTrainer
from src.train_csv import FolderRegistry

from common_ml_utils.feature_store_client import FeatureStoreClient

pytestmark = pytest.mark.integration


def test_the_recipe_reaches_its_targets_on_unseen_subscribers(tmp_path: Path) -> None:
    settings = ChurnTrainingSettings()
    client = FeatureStoreClient(settings.feature_store_db)
    contract = client.contract(FEATURE_SERVICE)
    frame = load_labelled(client, contract, datetime.now(UTC))
    subject = Subject(
        frame, contract.service, LABEL, settings.hyperparameters, settings.values, settings.validation
    )
    measured = cross_validation.measure(subject, 2, with_nested=False, resamples=100)
    measured.write(tmp_path, "Churn", targets=True)
    report = json.loads((tmp_path / "cross_validation.json").read_text())
    assert [line["met"] for line in report["results"]] == [True, True, True], report["results"]
    assert report["recipe"]["auc_roc"]["highest"] < 0.87, "too good: does a label leak?"
    assert report["recipe_minus_logistic"]["average_precision"]["lower"] > 0
    value = report["value_per_1000"]
    others = [value[name] for name in ("nobody", "contact everybody", "offer everybody", "offer at 0.5")]
    assert value["the two thresholds"] > max(others)


def test_a_subscriber_of_the_store_is_asked_about_with_a_trained_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ChurnTrainingSettings().model_copy(update={"data_dir": tmp_path, "reports_dir": tmp_path})
    trainer = ChurnTrainer(settings, FeatureStoreClient(settings.feature_store_db), datetime.now(UTC))
    trainer.registry = FolderRegistry(tmp_path, 1)
    trainer.train()
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path))
    arguments = ["--bundle", str(tmp_path / "bundle"), "--subscriber", "3"]
    assert what_if.main([*arguments, "--contract", "two_year", "--monthly-charges", "50"]) == 0
    report = json.loads((tmp_path / "churn" / "what_if-subscriber-3.json").read_text())
    assert report["now"]["row"]["subscriber_contract"] == "Month-to-month"
    assert report["difference"] < -0.1
    assert report["changed"]["row"]["subscriber_total_charges_usd"] == 108.15  # of the past: it stays
    capsys.readouterr()
    assert what_if.main(["--bundle", str(tmp_path / "bundle"), "--subscriber", "999999"]) == 1
    assert "has no subscriber_id 999999" in capsys.readouterr().err
