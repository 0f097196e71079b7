"""What the search looks at: folds of the training rows; the subscribers held out change nothing."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import AS_OF, FakeFeatureStore
from src import search
from src.config import ChurnTrainingSettings
from src.data_loader import split_holdout
from src.search import SPACE, load_problem

from common_ml_utils.hyperparameter_search import SearchProblem, SearchSettings, Worker
from common_ml_utils.search.space import load_space
from common_ml_utils.search.study import RepeatableSampler, pruner_of

WANTED = SearchSettings(metric="auc_roc", trials=3, folds=2)


class NoStore:
    """Stands for the database where a study is in memory."""

    reaching = staticmethod(nullcontext)

    def fail_dead_trials(self, study: Any) -> None:
        """No worker of a study in memory can die alone."""


@pytest.fixture
def searching(
    settings: ChurnTrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ChurnTrainingSettings:
    """Settings of a short search, in a space of few rounds."""
    space = tmp_path / "search_space.yaml"
    space.write_text("n_estimators: {low: 5, high: 20}\nlearning_rate: {low: 0.05, high: 0.3}\n")
    monkeypatch.setattr(search, "SPACE", space)
    return settings.model_copy(update={"search": WANTED})


def values(problem: SearchProblem) -> list[tuple[Any, Any]]:
    study = optuna.create_study(
        direction="maximize", sampler=RepeatableSampler(0), pruner=pruner_of("none", 8)
    )
    Worker(study, NoStore(), problem, WANTED).run()
    return [(trial.params, trial.value) for trial in study.trials]


def test_labels_of_the_holdout_change_nothing_in_the_search(
    searching: ChurnTrainingSettings, subscribers: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_problem(searching, AS_OF, FakeFeatureStore(subscribers.copy()))
    known = values(before)

    def flipped(part: int) -> SearchProblem:
        def split(labelled: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
            parts = split_holdout(labelled)
            parts[part]["churned"] = 1 - parts[part]["churned"]
            return parts

        monkeypatch.setattr(search, "split_holdout", split)
        return load_problem(searching, AS_OF, FakeFeatureStore(subscribers.copy()))

    holdout_flipped = flipped(1)
    assert holdout_flipped.identity() == before.identity()
    assert values(holdout_flipped) == known
    training_flipped = flipped(0)
    assert training_flipped.data_version != before.data_version
    assert values(training_flipped) != known, "labels of the folds do count"


def test_features_of_the_holdout_change_nothing_in_the_search(
    searching: ChurnTrainingSettings, subscribers: pd.DataFrame
) -> None:
    before = load_problem(searching, AS_OF, FakeFeatureStore(subscribers.copy()))
    _, held_out = split_holdout(subscribers)
    place = subscribers["subscriber_id"].isin(held_out["subscriber_id"])
    subscribers.loc[place, "subscriber_monthly_charges_usd"] = 9999.0
    after = load_problem(searching, AS_OF, FakeFeatureStore(subscribers))
    assert after.identity() == before.identity()
    assert values(after) == values(before)


def test_every_training_row_is_validated_on_once(
    searching: ChurnTrainingSettings, subscribers: pd.DataFrame
) -> None:
    problem = load_problem(searching, AS_OF, FakeFeatureStore(subscribers))
    training, _ = split_holdout(subscribers)
    assert sum(len(fold.labels) for fold in problem.folds) == len(training)
    assert int(np.sum([fold.labels.sum() for fold in problem.folds])) == training["churned"].sum()


def test_the_present_settings_lie_in_the_search_space() -> None:
    space = load_space(SPACE, ChurnTrainingSettings.model_fields["hyperparameters"].default)
    assert space.current() is not None
