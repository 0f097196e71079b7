"""Search for hyperparameters with Optuna: a study in PostgreSQL that workers share and that outlives them.

A project says what is searched (`src/search_space.yaml`) and on which validation folds; the holdout, by which
the gate judges, is not part of a problem. Trials are pruned while they run, finished ones are never lost.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common_ml_utils.command_line import run_command, utc_time
from common_ml_utils.errors import SearchError
from common_ml_utils.settings import PlatformSettings

CHECKPOINTS = 4  # a fold is looked at after each quarter of its boosting rounds

Watch = Callable[[np.ndarray], None]
"""Takes a fold's validation scores after each quarter of the rounds; raises to end the fit."""


class SearchSettings(BaseModel):
    """How long and how a project searches (`TRAINING_SEARCH__*`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Literal["average_precision", "auc_roc"]
    """What is maximised: its mean over the validation folds."""
    trials: int = Field(default=40, ge=1)
    """Finished trials that the study is to hold, those of all workers and earlier starts together."""
    timeout_seconds: float | None = Field(default=None, gt=0)
    folds: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0)
    pruner: Literal["median", "hyperband", "none"] = "median"
    heartbeat_seconds: int = Field(default=10, ge=1)
    """A worker that is silent for three of these is dead: its trial is marked failed and tried again."""
    logged_trials: int = Field(default=100, ge=0)
    """At most so many trials, the best ones, become MLflow runs."""


@dataclass(frozen=True)
class SearchFold:
    """One validation fold: `scores` fits with parameters on earlier or other rows and scores the fold's."""

    name: str
    labels: np.ndarray
    scores: Callable[[Any, Watch], np.ndarray]


@dataclass(frozen=True)
class SearchProblem:
    """What a study is about; two problems with the same identity have comparable trials."""

    report: str
    experiment: str
    space: Any
    folds: Sequence[SearchFold]
    metric: str
    data_version: str

    def identity(self) -> dict[str, str]:
        """Return what must be the same for trials to be comparable; it stands in the study."""
        return {
            "data_version": self.data_version,
            "folds": "; ".join(fold.name for fold in self.folds),
            "metric": self.metric,
            "space": self.space.identity(),
        }

    def default_study(self) -> str:
        """Return a name that another problem does not have."""
        import hashlib

        text = repr(sorted(self.identity().items()))
        return f"{self.report}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class SearchOutcome:
    """The best of a study's finished trials."""

    study: str
    best: dict[str, Any]
    value: float
    finished: int


S = TypeVar("S", bound=PlatformSettings)


def search_command(
    settings_type: type[S],
    load: Callable[[S, datetime | None], SearchProblem],
    arguments: Sequence[str] | None,
) -> int:
    """Run `python -m src.search`; `load(settings, as_of)` gives the project's problem."""
    parser = argparse.ArgumentParser(prog="python -m src.search")
    parser.add_argument("--trials", type=int, help="finished trials the study is to hold")
    parser.add_argument("--timeout", type=float, metavar="S", help="begin no trial after so many seconds")
    parser.add_argument("--study", help="name of the study; default: one of this data and search space")
    parser.add_argument("--as-of", type=utc_time, help="labels known at this time (UTC), as for src.train")
    options = parser.parse_args(arguments)

    def work(settings: S) -> None:
        changed = {"trials": options.trials, "timeout_seconds": options.timeout}
        given = {name: value for name, value in changed.items() if value is not None}
        if any(value <= 0 for value in given.values()):
            raise SearchError("--trials and --timeout must be above 0")
        wanted = settings.search.model_copy(update=given)  # type: ignore[attr-defined]
        if settings.backend != "local":  # type: ignore[attr-defined]
            raise SearchError(
                "a search fits each trial in its own process: unset TRAINING_BACKEND, and start the command "
                "several times with the same --study to use more processes or machines"
            )
        run_search(settings, wanted, lambda: load(settings, options.as_of), options.study)

    return run_command(settings_type, work)


def run_search(
    settings: PlatformSettings,
    wanted: SearchSettings,
    load: Callable[[], SearchProblem],
    study_name: str | None = None,
    schema: str = "optuna",
) -> SearchOutcome:
    """Search until the study holds the wanted number of finished trials or time is up, then report.

    Raises SearchError when the database does not answer or no trial has finished, RegistryError when MLflow
    does not answer.
    """
    from common_ml_utils.mlflow_utils import ModelRegistry
    from common_ml_utils.search.reporting import print_best, write_search_report
    from common_ml_utils.search.study import StudyStore, pruner_of
    from common_ml_utils.search.tracking import log_trials

    registry = ModelRegistry(settings.mlflow_tracking_uri)
    registry.check_reachable()
    store = StudyStore(settings.decisions_db, wanted.heartbeat_seconds, schema)
    store.check_reachable()
    problem = load()
    name = study_name or problem.default_study()
    steps = len(problem.folds) * CHECKPOINTS
    study = store.open(
        name,
        problem.identity(),
        problem.space.current(),
        wanted.seed,
        pruner_of(wanted.pruner, steps),
    )
    with store.reaching():
        Worker(study, store, problem, wanted).run()
        outcome = outcome_of(study)
        write_search_report(settings.reports_dir / problem.report, study, problem, outcome)
    print_best(outcome)
    with store.alone(name):
        log_trials(registry, problem, study, wanted.logged_trials)
    return outcome


class Worker:
    """Runs trials of a study until enough have finished, whoever ran them."""

    def __init__(self, study: Any, store: Any, problem: SearchProblem, wanted: SearchSettings) -> None:
        self._study = study
        self._store = store
        self._problem = problem
        self._wanted = wanted
        self._began = time.monotonic()

    def run(self) -> None:
        """Begin trials while there is room for them; wait for those that other workers still run."""
        self._say(f"study {self._study.study_name}: {self._counts()}, {self._wanted.trials} wanted")
        while not self._time_is_up():
            self._store.fail_dead_trials(self._study)
            finished, running = self._count("COMPLETE", "PRUNED"), self._count("RUNNING")
            if finished >= self._wanted.trials:
                return
            if finished + running < self._wanted.trials:
                self._study.optimize(self._objective, n_trials=1, callbacks=[self._progress])
            else:
                time.sleep(1)  # a trial of another worker: it finishes, or falls silent and is tried again
        self._say(f"time is up: {self._counts()}")

    def _objective(self, trial: Any) -> float:
        """Return the mean of the metric over the folds; report it after each quarter of each fold."""
        import optuna

        from common_ml_utils.search.study import BEGUN

        trial.set_user_attr(BEGUN, trial.number)
        parameters = self._problem.space.hyperparameters(self._problem.space.suggest(trial))
        metric = metric_of(self._problem.metric)
        values: list[float] = []
        step = 0
        for fold in self._problem.folds:

            def value_of(scores: np.ndarray, fold: SearchFold = fold) -> float:
                return float(metric(fold.labels, scores))

            def watch(scores: np.ndarray) -> None:
                nonlocal step
                trial.report(float(np.mean([*values, value_of(scores)])), step)
                step += 1
                if trial.should_prune():
                    raise optuna.TrialPruned

            values.append(value_of(fold.scores(parameters, watch)))
        trial.set_user_attr("folds", values)
        return float(np.mean(values))

    def _progress(self, study: Any, trial: Any) -> None:
        """Say on stderr what a trial gave, what is best and how long the rest may take."""
        finished = self._count("COMPLETE", "PRUNED")
        spent = (trial.datetime_complete - trial.datetime_start).total_seconds()
        value = "pruned" if trial.state.name == "PRUNED" else f"{self._problem.metric} {trial.value:.4f}"
        best = (
            f"best {study.best_value:.4f} (trial {study.best_trial.number})"
            if self._count("COMPLETE")
            else ""
        )
        self._say(
            f"trial {trial.number}: {value} in {spent:.1f} s; {finished}/{self._wanted.trials} done, {best}"
        )

    def _count(self, *states: str) -> int:
        return sum(trial.state.name in states for trial in self._study.get_trials(deepcopy=False))

    def _counts(self) -> str:
        complete, pruned, failed = (self._count(state) for state in ("COMPLETE", "PRUNED", "FAIL"))
        return f"{complete} complete, {pruned} pruned, {failed} failed"

    def _time_is_up(self) -> bool:
        limit = self._wanted.timeout_seconds
        return limit is not None and time.monotonic() - self._began >= limit

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def metric_of(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return scikit-learn's function of a metric."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {"average_precision": average_precision_score, "auc_roc": roc_auc_score}[name]


def outcome_of(study: Any) -> SearchOutcome:
    """Return the best complete trial; raises SearchError when there is none."""
    states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
    if "COMPLETE" not in states:
        raise SearchError(f"no trial of study {study.study_name} is complete yet: give it more time")
    return SearchOutcome(
        study=study.study_name,
        best=dict(study.best_params),
        value=float(study.best_value),
        finished=sum(state in ("COMPLETE", "PRUNED") for state in states),
    )


def checkpoint_rounds(rounds: int) -> list[int]:
    """Return after how many rounds a fold is looked at; the last time is its end.

    >>> checkpoint_rounds(200), checkpoint_rounds(2)
    ([50, 100, 150, 200], [1, 1, 2, 2])
    """
    return [max(1, -(-rounds * quarter // CHECKPOINTS)) for quarter in range(1, CHECKPOINTS + 1)]


def environment_lines(parameters: Mapping[str, Any]) -> list[str]:
    """Return the settings that make these parameters the project's.

    >>> environment_lines({"max_depth": 5})
    ['TRAINING_HYPERPARAMETERS__MAX_DEPTH=5']
    """
    return [f"TRAINING_HYPERPARAMETERS__{name.upper()}={value}" for name, value in parameters.items()]


def xgboost_watch(matrix: np.ndarray, rounds: int, watch: Watch) -> Any:
    """Return an XGBoost callback that shows the validation scores after each quarter of the rounds."""
    import xgboost

    due = checkpoint_rounds(rounds)

    class Checkpoints(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            for _ in range(due.count(epoch + 1)):
                watch(model.inplace_predict(matrix).astype(np.float64))
            return False

    return Checkpoints()


def lightgbm_watch(matrix: np.ndarray, rounds: int, watch: Watch) -> Callable[[Any], None]:
    """Return a LightGBM callback that shows the validation scores after each quarter of the rounds."""
    due = checkpoint_rounds(rounds)

    def checkpoints(environment: Any) -> None:
        for _ in range(due.count(environment.iteration + 1)):
            watch(np.asarray(environment.model.predict(matrix, num_threads=1), dtype=np.float64))

    return checkpoints
