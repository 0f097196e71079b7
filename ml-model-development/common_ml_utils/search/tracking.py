"""A study's trials as MLflow runs: one parent run a study, a child run a trial."""

from __future__ import annotations

import os
import time
from typing import Any

from common_ml_utils.errors import RegistryError, first_line
from common_ml_utils.hyperparameter_search import SearchProblem
from common_ml_utils.mlflow_utils import ModelRegistry

STUDY_TAG = "search.study"
TRIAL_TAG = "search.trial"
PARENT = "parent"


def log_trials(registry: ModelRegistry, problem: SearchProblem, study: Any, limit: int) -> int:
    """Log the best finished trials that are not logged yet, `limit` in all; return how many were added.

    Trials stand in an experiment of their own, `<experiment>_search`, beside the trainings. The caller keeps
    other workers of the study out meanwhile.
    """
    import mlflow
    import requests
    from mlflow.exceptions import MlflowException

    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for the settings
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri)
    try:
        return _log(client, f"{problem.experiment}_search", problem, study, limit)
    except (MlflowException, requests.RequestException) as error:
        raise RegistryError(
            f"the search is done, but MLflow at {registry.tracking_uri} did not take its runs: "
            f"{first_line(error)}; the same command logs what is missing"
        ) from error


def _log(client: Any, experiment: str, problem: SearchProblem, study: Any, limit: int) -> int:
    known = client.get_experiment_by_name(experiment)
    if known and known.lifecycle_stage == "deleted":  # its name stays taken
        client.restore_experiment(known.experiment_id)
    place = known.experiment_id if known else client.create_experiment(experiment)
    runs = client.search_runs([place], f"tags.`{STUDY_TAG}` = '{study.study_name}'", max_results=1000)
    logged = {run.data.tags[TRIAL_TAG]: run.info.run_id for run in runs}
    tags = {STUDY_TAG: study.study_name}
    parent = logged.get(PARENT) or _run(client, place, study.study_name, {**tags, TRIAL_TAG: PARENT})
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    finished.sort(key=lambda trial: trial.value, reverse=True)
    missing = [trial for trial in finished[:limit] if str(trial.number) not in logged]
    room = max(0, limit - (len(logged) - (PARENT in logged)))
    for trial in missing[:room]:
        own = {**tags, TRIAL_TAG: str(trial.number), "mlflow.parentRunId": parent}
        run = _run(client, place, f"trial {trial.number}", own)
        _values(client, run, trial.params, {problem.metric: trial.value, "seconds": _seconds(trial)})
    best = study.best_trial
    summary = {problem.metric: best.value, "trials": len(finished), "best_trial": best.number}
    _values(client, parent, {}, summary)
    for name, value in {**problem.identity(), **{f"best.{k}": v for k, v in best.params.items()}}.items():
        client.set_tag(parent, name, str(value))
    return len(missing[:room])


def _run(client: Any, experiment: str, name: str, tags: dict[str, str]) -> str:
    run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    client.set_terminated(run_id)
    return run_id


def _values(client: Any, run_id: str, parameters: dict[str, Any], metrics: dict[str, float]) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(name, float(value), now, 0) for name, value in metrics.items()],
        params=[Param(name, str(value)) for name, value in parameters.items()],
    )


def _seconds(trial: Any) -> float:
    return (trial.datetime_complete - trial.datetime_start).total_seconds()
