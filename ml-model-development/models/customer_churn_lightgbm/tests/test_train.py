"""A whole churn training on made-up data."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from conftest import KINDS, FakeFeatureStore, ListRegistry, Trained, run_training
from src.config import ChurnHyperparameters, ChurnTrainingSettings, ChurnValues
from src.data_loader import KEY, split_holdout
from src.evaluate import SOURCE
from src.train import churn_action_costs, fit_lightgbm

from common_ml_utils import base_model_trainer
from common_ml_utils.errors import DataError, ModelDevelopmentError
from common_ml_utils.promotion.classifier_gate import ClassifierProject
from common_ml_utils.training_sets import TrainingSetStore


def test_a_training_registers_one_complete_challenger(trained: Trained) -> None:
    [(bundle, run, files)] = trained.registry.registered
    assert bundle.manifest.model_name == "churn-prediction-model"
    assert bundle.manifest.model_kind == "lightgbm"
    assert "model.txt" in files
    assert bundle.preprocessing.names == list(KINDS)
    assert bundle.preprocessing.features[2].categories == ("Month-to-month", "One year", "Two year")
    assert 0 < bundle.thresholds["contact"] <= bundle.thresholds["offer"] <= 1
    assert run.metrics["auc_roc"] > 0.65
    assert bundle.reference["subscriber_payment_method"]["null_count"] > 0


def test_the_report_holds_every_fold(trained: Trained) -> None:
    report = json.loads((trained.settings.reports_dir / "churn" / "train.json").read_text())
    assert len(report["validation"]) == 5
    aucs = [fold["auc_roc"] for fold in report["validation"]]
    assert report["validation_mean"]["validation_auc_roc"] == pytest.approx(np.mean(aucs))
    assert report["rows"]["training"] + report["rows"]["holdout"] == 900


def test_the_same_data_and_seed_give_the_same_bytes(
    trained: Trained,
    settings: ChurnTrainingSettings,
    subscribers: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base_model_trainer, "model_plots", lambda *_: {})  # they take seconds
    registry = ListRegistry()
    run_training(settings, FakeFeatureStore(subscribers), registry)
    again, before = registry.registered[0][2], trained.registry.registered[0][2]
    assert {name for name in again if again[name] != before[name]} <= {"manifest.json"}  # it names the commit
    assert again["model.txt"] == before["model.txt"]


def test_another_seed_gives_another_model(trained: Trained, subscribers: pd.DataFrame) -> None:
    bundle = trained.registry.latest().bundle
    labels = subscribers["churned"].to_numpy()
    models = [
        fit_lightgbm(
            bundle.preprocessing,
            subscribers,
            labels,
            ChurnHyperparameters(n_estimators=5, seed=seed, n_jobs=1),
        ).to_bytes()
        for seed in (0, 0, 1)
    ]
    assert models[0] == models[1]
    assert models[0] != models[2]


def test_the_gates_holdout_is_the_kept_one_or_the_same_fetched_again(trained: Trained) -> None:
    challenger, store = trained.registry.latest(), trained.store
    kept = TrainingSetStore(trained.settings.data_dir / "training_sets" / "churn")
    assert kept.load(challenger.bundle.manifest.data_version, "made up", store.published.sha256) is not None
    gate, reports = trained.settings.gate, trained.settings.reports_dir
    nothing = TrainingSetStore(trained.settings.data_dir / "none")
    from_file = ClassifierProject(SOURCE, store, kept, gate, reports).holdout(challenger, challenger)
    fetched = ClassifierProject(SOURCE, store, nothing, gate, reports).holdout(challenger, challenger)
    pd.testing.assert_frame_equal(from_file.frame, fetched.frame)
    assert set(from_file.groups) == set(split_holdout(store.subscribers)[1][KEY])


@pytest.mark.parametrize("kind", ["one class", "missing feature", "impossible value", "not matured"])
def test_bad_data_registers_nothing(
    settings: ChurnTrainingSettings, subscribers: pd.DataFrame, kind: str
) -> None:
    as_of = datetime(2024, 5, 2, tzinfo=UTC) if kind == "not matured" else datetime(2024, 6, 1, tzinfo=UTC)
    broken = {
        "one class": subscribers.assign(churned=1),
        "missing feature": subscribers.drop(columns="subscriber_contract"),
        "impossible value": subscribers.assign(subscriber_tenure_months=-3),
        "not matured": subscribers,
    }[kind]
    registry = ListRegistry()
    with pytest.raises(DataError) as caught:
        run_training(settings, FakeFeatureStore(broken), registry, as_of)
    assert isinstance(caught.value, ModelDevelopmentError)
    assert registry.registered == []


def test_costs_follow_the_expected_value() -> None:
    values = ChurnValues(
        subscriber_value=100, contact_cost=1, contact_keeps=0.1, offer_cost=10, offer_keeps=0.5
    )
    np.testing.assert_allclose(churn_action_costs(np.array([0, 1]), values), [[0, 1, 10], [100, 91, 60]])
