"""The Handbook's split and the holdout of the gate."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from conftest import FakeFeatureStore, Trained, make_transactions
from src import evaluate
from src.config import FraudTrainingSettings
from src.evaluate import load_handbook_split, load_holdout, trained_into_holdout
from src.preprocessor import days_since_epoch

from common_ml_utils.errors import DataError
from common_ml_utils.release_bundle import Manifest
from common_ml_utils.training_sets import TrainingSetStore

HANDBOOK_DAYS = 137


@pytest.fixture(scope="module")
def half_year() -> FakeFeatureStore:
    return FakeFeatureStore(make_transactions(days=HANDBOOK_DAYS))


def test_the_split_is_the_handbooks_days_with_known_cards_removed(half_year: FakeFeatureStore) -> None:
    training, test = load_handbook_split(half_year)
    first = days_since_epoch(half_year.transactions).min()
    assert set(days_since_epoch(training) - first) == set(range(115, 122))
    assert set(days_since_epoch(test) - first) <= set(range(129, 136))
    # An oracle row by row: a card is out from the day after its first fraud's delay has passed.
    everything = half_year.transactions.assign(day=days_since_epoch(half_year.transactions) - first)
    frauds = everything[(everything["is_fraud"] == 1) & (everything["day"] >= 115)]
    expected = [
        row.transaction_id
        for row in everything[everything["day"].between(129, 135)].itertuples()
        if not ((frauds["customer_id"] == row.customer_id) & (frauds["day"] + 8 <= row.day)).any()
    ]
    assert test["transaction_id"].tolist() == expected
    assert 0 < len(expected) < everything["day"].between(129, 135).sum()


def test_a_scaled_down_set_reports_its_own_figures_without_targets(
    settings: FraudTrainingSettings, half_year: FakeFeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "FeatureStoreClient", lambda address: half_year)
    evaluate.handbook(settings)
    folder = settings.reports_dir / "fraud"
    report = json.loads((folder / "handbook.json").read_text())
    assert report["full_set"] is False
    assert all(line["target"] is None and line["peer"] is None for line in report["results"])
    assert report["published"]["XGBoost"]["average_precision"] == 0.639
    assert report["rows"]["training"]["transactions"] > 0
    assert (folder / "handbook.png").read_bytes().startswith(b"\x89PNG")
    assert "handbook" in (folder / "handbook.html").read_text().lower()


def test_the_full_set_must_give_the_published_rows(
    settings: FraudTrainingSettings, half_year: FakeFeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "FeatureStoreClient", lambda address: half_year)
    monkeypatch.setattr(evaluate, "is_full_set", lambda client: True)
    with pytest.raises(DataError, match="is a day wrong"):
        evaluate.handbook(settings)
    assert not (settings.reports_dir / "fraud" / "handbook.json").exists()


def test_too_few_days_are_refused(store: FakeFeatureStore) -> None:
    with pytest.raises(DataError, match="needs 136 days"):
        load_handbook_split(store)


def test_the_gates_holdout_is_the_kept_one_or_the_same_fetched_again(trained: Trained) -> None:
    challenger, store = trained.registry.latest(), trained.store
    kept = TrainingSetStore(trained.settings.data_dir / "training_sets" / "fraud")
    assert kept.load(challenger.bundle.manifest.data_version, "made up", store.published.sha256) is not None
    from_file = load_holdout(store, kept, challenger, challenger)
    empty = TrainingSetStore(trained.settings.data_dir / "nothing")
    fetched = load_holdout(store, empty, challenger, challenger)
    pd.testing.assert_frame_equal(from_file.frame, fetched.frame)
    np.testing.assert_array_equal(from_file.groups, from_file.frame["customer_id"])
    interval = challenger.bundle.manifest.training
    assert from_file.frame["event_timestamp"].min() >= interval.holdout_start
    assert from_file.frame["event_timestamp"].max() < interval.holdout_end


def test_only_a_champion_whose_training_ends_in_the_holdout_saw_it(trained: Trained) -> None:
    challenger = trained.registry.latest().bundle.manifest

    def champion(training_end: datetime) -> Manifest:
        training = challenger.training.model_copy(update={"end": training_end})
        return challenger.model_copy(update={"training": training})

    holdout_start = challenger.training.holdout_start
    assert not trained_into_holdout(champion(holdout_start), challenger)
    assert trained_into_holdout(champion(holdout_start + timedelta(days=1)), challenger)
