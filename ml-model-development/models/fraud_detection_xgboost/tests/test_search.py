"""What the search looks at: folds before the holdout, which it neither fetches nor is changed by."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import optuna
import pandas as pd
import pytest
from conftest import FakeFeatureStore
from src.config import FraudTrainingSettings
from src.data_loader import resolve_intervals
from src.search import SPACE, load_problem, main, prequential_folds

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import EmptyWindowError, OneClassLabelsError
from common_ml_utils.feature_store_client import EntityQuery
from common_ml_utils.hyperparameter_search import SearchProblem, SearchSettings, Worker
from common_ml_utils.search.space import load_space
from common_ml_utils.search.study import RepeatableSampler, pruner_of

HOLDOUT_START = pd.Timestamp("2024-01-27", tz="UTC")
WANTED = SearchSettings(metric="average_precision", trials=3, folds=1)


class WatchedStore(FakeFeatureStore):
    """Remembers which times were asked for."""

    def features_as_of(
        self,
        contract: PublishedContract,
        entities: EntityQuery,
        windows: Sequence[tuple[datetime, datetime]],
        description: str = "features",
    ) -> pd.DataFrame:
        self.ends = [end for _, end in windows]
        self.known_as_of = entities.labels_known_as_of
        return super().features_as_of(contract, entities, windows, description)


class NoStore:
    """Stands for the database where a study is in memory."""

    reaching = staticmethod(nullcontext)

    def fail_dead_trials(self, study: Any) -> None:
        """No worker of a study in memory can die alone."""


@pytest.fixture
def searching(settings: FraudTrainingSettings) -> FraudTrainingSettings:
    return settings.model_copy(update={"search": WANTED})


def values(problem: SearchProblem) -> list[tuple[Any, Any]]:
    study = optuna.create_study(
        direction="maximize", sampler=RepeatableSampler(0), pruner=pruner_of("none", 4)
    )
    study.enqueue_trial(problem.space.current() or {})
    Worker(study, NoStore(), problem, WANTED).run()
    return [(trial.params, trial.value) for trial in study.trials]


def test_nothing_from_the_holdout_on_is_fetched(
    searching: FraudTrainingSettings, transactions: pd.DataFrame
) -> None:
    store = WatchedStore(transactions)
    problem = load_problem(searching, None, store)
    assert max(store.ends) <= HOLDOUT_START - timedelta(days=7)
    assert store.known_as_of == HOLDOUT_START
    assert [fold.name for fold in problem.folds] == ["2024-01-13/2024-01-20"]


def test_labels_of_the_holdout_change_nothing_in_the_search(
    searching: FraudTrainingSettings, transactions: pd.DataFrame
) -> None:
    before = load_problem(searching, None, FakeFeatureStore(transactions.copy()))
    later = transactions["event_timestamp"] >= HOLDOUT_START - timedelta(days=7)
    transactions.loc[later, "is_fraud"] = 1 - transactions.loc[later, "is_fraud"]
    after = load_problem(searching, None, FakeFeatureStore(transactions.copy()))
    assert after.identity() == before.identity()
    known = values(before)
    assert values(after) == known
    transactions.loc[~later, "is_fraud"] = transactions.loc[~later, "is_fraud"].to_numpy()[::-1]
    other = load_problem(searching, None, FakeFeatureStore(transactions))
    assert other.data_version != before.data_version
    assert values(other) != known, "labels of the folds do count"


def test_a_fold_sees_only_labels_known_when_it_begins(settings: FraudTrainingSettings) -> None:
    as_of, first = datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)
    intervals = resolve_intervals(as_of, first.date(), 7, settings.windows)
    folds = prequential_folds(intervals, first.date(), 7, settings.windows, 4)
    assert len(folds) == 4
    for fit, validation in folds:
        assert fit.end + timedelta(days=7) == validation.start
        assert fit.end - fit.start == timedelta(days=settings.windows.training_days)
        assert validation.end - validation.start == timedelta(days=settings.windows.validation_days)
        assert validation.end + timedelta(days=7) <= intervals.holdout.start
    for (_, earlier), (_, later) in pairwise(folds):
        assert earlier.end == later.start


def test_too_few_days_for_the_folds_are_named(
    searching: FraudTrainingSettings, store: FakeFeatureStore
) -> None:
    many = searching.model_copy(update={"search": WANTED.model_copy(update={"folds": 4})})
    with pytest.raises(EmptyWindowError, match=r"too few days for 4 folds.*TRAINING_SEARCH__FOLDS"):
        load_problem(many, None, store)


def test_a_fold_of_one_class_is_named(searching: FraudTrainingSettings, transactions: pd.DataFrame) -> None:
    fold = transactions["event_timestamp"].between("2024-01-13", "2024-01-20")
    transactions.loc[fold, "is_fraud"] = 0
    with pytest.raises(OneClassLabelsError, match="fold 2024-01-13/2024-01-20"):
        load_problem(searching, None, FakeFeatureStore(transactions))


def test_the_present_settings_lie_in_the_search_space() -> None:
    space = load_space(SPACE, FraudTrainingSettings.model_fields["hyperparameters"].default)
    assert space.current() is not None


@pytest.mark.parametrize("arguments", [["--trials", "0"], ["--timeout", "-1"]])
def test_nonsense_is_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    databases = ("FEATURE_STORE_DB", "DECISIONS_DB")
    for name in databases:
        for key, value in {
            "HOST": "127.0.0.1",
            "PORT": "1",
            "NAME": "n",
            "USER": "u",
            "PASSWORD": "p",
        }.items():
            monkeypatch.setenv(f"{name}_{key}", value)
    for name in ("MLFLOW_TRACKING_URI", "DATA_DIR", "REPORTS_DIR"):
        monkeypatch.setenv(name, "nowhere")
    assert main(arguments) == 1
    assert "must be above 0" in capsys.readouterr().err
    monkeypatch.setenv("TRAINING_BACKEND", "ray")
    assert main([]) == 1
    assert "unset TRAINING_BACKEND" in capsys.readouterr().err
