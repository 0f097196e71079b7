"""A whole training on made-up data: repeatable, complete, and registering nothing when something is wrong."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from conftest import FEATURES, FakeFeatureStore, ListRegistry, Trained, run_training
from src.config import FraudCosts, FraudHyperparameters, FraudTrainingSettings
from src.train import FraudTrainer, fit_xgboost, fraud_action_costs

from common_ml_utils.errors import (
    EmptyWindowError,
    ModelDevelopmentError,
    OneClassLabelsError,
    RegistryError,
    SchemaMismatchError,
)


def test_a_training_registers_one_complete_challenger(trained: Trained) -> None:
    [(bundle, run, _)] = trained.registry.registered
    assert bundle.manifest.model_name == "fraud-detection-model"
    assert bundle.manifest.feature_service == "fraud_detection_v1"
    assert bundle.contract.text == trained.store.published.text
    assert bundle.preprocessing.names == FEATURES
    assert 0 < bundle.thresholds["review"] <= bundle.thresholds["decline"] <= 1
    assert bundle.manifest.training.end == datetime(2024, 1, 20, tzinfo=UTC)
    assert bundle.manifest.training.holdout_start == datetime(2024, 1, 27, tzinfo=UTC)
    assert bundle.manifest.training.rows == sum(bundle.reference["tx_amount"]["counts"])
    assert run.metrics["auc_roc"] > 0.9
    assert {"card_precision_100", "validation_average_precision"} <= set(run.metrics)
    assert {"precision_recall", "calibration", "shap_summary"} <= set(run.figures)


def test_the_report_holds_what_its_readers_need(trained: Trained) -> None:
    folder = trained.settings.reports_dir / "fraud"
    report = json.loads((folder / "train.json").read_text())
    bundle, run, _ = trained.registry.registered[0]
    assert report["version"] == 1
    assert report["bundle_sha256"] == bundle.sha256
    assert set(report["metrics"].items()) <= set(run.metrics.items())
    assert {"auc_roc", "average_precision", "card_precision_100"} <= set(report["metrics"])
    assert set(report["seconds"]) == {"load", "validate", "fit", "evaluate", "register"}
    assert report["rows"]["holdout"] > 0
    assert (folder / "train.html").stat().st_size > 10_000
    assert not list(folder.glob("*.partial"))


def test_the_training_set_is_kept_for_the_gate(trained: Trained) -> None:
    version = trained.registry.registered[0][0].manifest.data_version
    assert (trained.settings.data_dir / "training_sets" / "fraud" / f"{version}.parquet").exists()


def test_the_same_data_and_seed_give_the_same_bytes(
    settings: FraudTrainingSettings, transactions: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_COMMIT", "fixed")
    registry = ListRegistry()
    for _ in range(2):
        run_training(settings, FakeFeatureStore(transactions.copy()), registry)
    (first, _, first_files), (second, _, second_files) = registry.registered
    assert first_files == second_files
    assert first.sha256 == second.sha256


def test_other_data_is_another_data_version(
    settings: FraudTrainingSettings, transactions: pd.DataFrame
) -> None:
    before = FraudTrainer(settings, FakeFeatureStore(transactions.copy()), None).load()
    transactions.loc[30 * 60, "tx_amount"] += 1
    after = FraudTrainer(settings, FakeFeatureStore(transactions), None).load()
    assert before.data_version != after.data_version


def test_threads_do_not_change_the_model() -> None:
    rng = np.random.default_rng(1)
    matrix, labels = rng.random((3000, 5)), rng.integers(0, 2, 3000)
    models = [
        fit_xgboost(matrix, labels, FraudHyperparameters(n_estimators=10, n_jobs=jobs)).to_bytes()
        for jobs in (1, 2)
    ]
    assert models[0] == models[1]


def test_an_earlier_as_of_uses_only_labels_known_then(
    settings: FraudTrainingSettings, store: FakeFeatureStore
) -> None:
    trainer = FraudTrainer(settings, store, datetime(2024, 2, 7, tzinfo=UTC))
    data = trainer.load()
    assert data.labelled["label_known_at"].max() <= datetime(2024, 2, 7, tzinfo=UTC)
    assert data.training["label_known_at"].max() <= data.interval.holdout_start
    fit, validation = data.folds[0]
    assert fit["label_known_at"].max() <= validation["event_timestamp"].min().floor("D")


def broken(transactions: pd.DataFrame, kind: str) -> pd.DataFrame:
    if kind == "missing feature":
        return transactions.drop(columns="tx_is_night")
    if kind == "one class":
        return transactions.assign(is_fraud=0)
    if kind == "impossible value":
        return transactions.assign(terminal_fraud_risk_1d=2.0)
    if kind == "labels never mature":
        return transactions.assign(label_known_at=transactions["label_known_at"] + pd.Timedelta(days=60))
    if kind == "too few days":
        return transactions[transactions["event_timestamp"] >= pd.Timestamp("2024-01-20", tz="UTC")]
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("missing feature", SchemaMismatchError),
        ("one class", OneClassLabelsError),
        ("impossible value", SchemaMismatchError),
        ("labels never mature", EmptyWindowError),
        ("too few days", EmptyWindowError),
    ],
)
def test_bad_data_registers_nothing(
    settings: FraudTrainingSettings, transactions: pd.DataFrame, kind: str, error: type[ModelDevelopmentError]
) -> None:
    registry = ListRegistry()
    with pytest.raises(error):
        run_training(settings, FakeFeatureStore(broken(transactions, kind)), registry)
    assert registry.registered == []
    assert not (settings.reports_dir / "fraud" / "train.json").exists()


def test_an_unreachable_registry_is_found_out_before_any_work(
    settings: FraudTrainingSettings, store: FakeFeatureStore
) -> None:
    with pytest.raises(RegistryError, match="does not answer"):
        run_training(settings, store, ListRegistry(reachable=False))
    assert not settings.data_dir.exists()


def test_costs_by_hand() -> None:
    costs = fraud_action_costs(np.array([50.0, 50.0]), np.array([1, 0]), FraudCosts())
    np.testing.assert_allclose(costs, [[50, 3 + 5, 0], [0, 3, 20]])


def test_exact_splits_are_a_setting() -> None:
    rng = np.random.default_rng(1)
    matrix, labels = rng.random((200, 3)), rng.integers(0, 2, 200)
    exact = FraudHyperparameters(tree_method="exact", n_estimators=3)
    assert len(fit_xgboost(matrix, labels, exact).scores(matrix)) == 200


def test_scores_may_start_at_a_half_as_in_earlier_releases() -> None:
    rng = np.random.default_rng(1)
    matrix, labels = rng.random((500, 3)), (rng.random(500) < 0.05).astype(int)
    shared, half = (
        fit_xgboost(matrix, labels, FraudHyperparameters(n_estimators=1, learning_rate=1e-6, base_score=base))
        for base in (None, 0.5)
    )
    assert shared.scores(matrix).mean() == pytest.approx(labels.mean(), abs=0.002)
    assert half.scores(matrix).mean() == pytest.approx(0.5, abs=1e-3)
