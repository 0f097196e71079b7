"""The Handbook's split on the platform's features."""

from __future__ import annotations

import json

import pytest
from conftest import FakeFeatureStore, make_transactions
from src import handbook
from src.config import FraudTrainingSettings
from src.handbook import load_handbook_split, single_split
from src.preprocessor import days_since_epoch

from common_ml_utils.errors import DataError

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
    monkeypatch.setattr(handbook, "FeatureStoreClient", lambda address: half_year)
    single_split(settings)
    folder = settings.reports_dir / "fraud"
    report = json.loads((folder / "handbook.json").read_text())
    assert report["full_set"] is False
    assert all(line["target"] is None and line["peer"] is None for line in report["results"])
    assert report["published"]["XGBoost"]["average_precision"] == 0.639
    assert report["rows"]["training"]["transactions"] > 0
    assert "handbook" in (folder / "handbook.html").read_text().lower()


def test_the_full_set_must_give_the_published_rows(
    settings: FraudTrainingSettings, half_year: FakeFeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handbook, "FeatureStoreClient", lambda address: half_year)
    monkeypatch.setattr(handbook, "is_full_set", lambda client: True)
    with pytest.raises(DataError, match="is a day wrong"):
        single_split(settings)
    assert not (settings.reports_dir / "fraud" / "handbook.json").exists()


def test_too_few_days_are_refused(store: FakeFeatureStore) -> None:
    with pytest.raises(DataError, match="needs 136 days"):
        load_handbook_split(store)
