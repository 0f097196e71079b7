"""Studies in the running stack's PostgreSQL: killed, shared, kept apart, and logged to MLflow once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psycopg
import pytest
from psycopg import sql
from pydantic import ValidationError
from search_worker import SPACE, made_up_problem

from common_ml_utils.errors import SearchError
from common_ml_utils.search.study import StudyStore
from common_ml_utils.settings import PlatformSettings

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parent
PATIENCE = 300


@pytest.fixture(scope="module")
def stack() -> PlatformSettings:
    try:
        return PlatformSettings()
    except ValidationError as error:
        missing = sorted(str(problem["loc"][0]) for problem in error.errors())
        pytest.fail(f"the stack's environment is not loaded (source its stack.env); not set: {missing}")


@pytest.fixture(scope="module")
def schema(stack: PlatformSettings) -> Iterator[str]:
    """A schema of this test's own, removed afterwards."""
    name = f"test_optuna_{uuid.uuid4().hex[:8]}"
    with StudyStore(stack.decisions_db, 1, name).alone("made before any worker starts"):
        pass
    yield name
    with psycopg.connect(**stack.decisions_db.connection_arguments()) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


@pytest.fixture
def study_name(stack: PlatformSettings) -> Iterator[str]:
    """A study's and an experiment's name of this test's own; the experiment is removed afterwards."""
    name = f"test-search-{uuid.uuid4().hex[:8]}"
    yield name
    client = mlflow.MlflowClient(tracking_uri=stack.mlflow_tracking_uri)
    if experiment := client.get_experiment_by_name(f"{name}_search"):
        client.delete_experiment(experiment.experiment_id)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(schema: str, study_name: str, tmp_path: Path) -> Iterator[Start]:
    """Start workers of the study; those still running at the end of the test are ended."""
    started: list[subprocess.Popen[str]] = []

    def worker(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(TESTS / "search_worker.py"), schema, study_name, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        folder = tmp_path / str(len(started))
        process = subprocess.Popen(
            [*command, "--reports", str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield worker
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def trials_of(stack: PlatformSettings, schema: str, name: str) -> list[optuna.trial.FrozenTrial]:
    store = StudyStore(stack.decisions_db, 1, schema)
    return optuna.load_study(study_name=name, storage=store._storage).get_trials(deepcopy=False)


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.2)


def states(trials: list[optuna.trial.FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in trials]


def test_a_search_killed_in_the_middle_goes_on_where_it_was(
    stack: PlatformSettings, schema: str, study_name: str, start: Start, tmp_path: Path
) -> None:
    victim = start("--trials", "7", "--seconds-a-step", "0.15")
    seen: list[optuna.trial.FrozenTrial] = []

    def in_the_middle() -> bool:
        assert victim.poll() is None, victim.communicate()[1]
        try:
            seen[:] = trials_of(stack, schema, study_name)
        except KeyError:  # no such study yet
            return False
        running = [trial for trial in seen if trial.state.name == "RUNNING" and trial.intermediate_values]
        return states(seen).count("COMPLETE") >= 2 and bool(running)

    wait_until(in_the_middle)
    victim.send_signal(signal.SIGKILL)
    victim.wait(timeout=10)
    before = [trial for trial in trials_of(stack, schema, study_name) if trial.state.is_finished()]
    again = start("--trials", "7")
    _, said = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, said
    after = trials_of(stack, schema, study_name)
    assert f"{states(before).count('COMPLETE')} complete" in said.splitlines()[0]
    assert [after[t.number].values for t in before] == [t.values for t in before], "a finished trial changed"
    [dead] = [trial for trial in after if trial.state.name == "FAIL"]
    [retried] = [trial for trial in after if trial.system_attrs.get("failed_trial") == dead.number]
    assert retried.params == dead.params
    assert retried.state.name in ("COMPLETE", "PRUNED")
    assert sorted({*states(after)} - {"PRUNED"}) == ["COMPLETE", "FAIL"]
    assert states(after).count("COMPLETE") + states(after).count("PRUNED") == 7
    report = json.loads((tmp_path / "1" / "made-up" / "search.json").read_text())
    assert report["counts"]["fail"] == 1
    assert report["best"]["value"] == max(t.value or 0 for t in after if t.state.name == "COMPLETE")


def test_two_workers_share_a_study_and_its_runs_are_logged_once(
    stack: PlatformSettings, schema: str, study_name: str, start: Start
) -> None:
    workers = [start("--trials", "10", "--seconds-a-step", "0.05") for _ in range(2)]
    answers = [worker.communicate(timeout=PATIENCE) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], answers
    ran = [{int(n) for n in re.findall(r"^trial (\d+):", said, re.MULTILINE)} for _, said in answers]
    trials = trials_of(stack, schema, study_name)
    finished = {t.number for t in trials if t.state.name in ("COMPLETE", "PRUNED")}
    assert ran[0]
    assert ran[1]
    assert not ran[0] & ran[1]
    assert ran[0] | ran[1] == finished
    assert 10 <= len(finished) <= 11, "two workers may both see room for the last trial"
    assert len({tuple(sorted(t.params.items())) for t in trials}) == len(trials), "a suggestion came twice"
    pruned = [t for t in trials if t.state.name == "PRUNED"]
    assert pruned
    assert all(len(t.intermediate_values) < 8 for t in pruned)
    client = mlflow.MlflowClient(tracking_uri=stack.mlflow_tracking_uri)
    experiment = client.get_experiment_by_name(f"{study_name}_search")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if run.data.tags["search.trial"] == "parent"]
    children = [run for run in runs if run is not parent]
    complete = {str(t.number): t for t in trials if t.state.name == "COMPLETE"}
    assert sorted(run.data.tags["search.trial"] for run in children) == sorted(complete)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    for run in children:
        trial = complete[run.data.tags["search.trial"]]
        assert run.data.metrics["average_precision"] == pytest.approx(trial.value)
        assert float(run.data.params["eta"]) == pytest.approx(trial.params["eta"])
    shown = "".join(text for answer in answers for text in answer)
    assert stack.decisions_db.password.get_secret_value() not in shown
    assert "TRAINING_HYPERPARAMETERS__ETA=" in answers[0][0]


def test_studies_hold_no_password(stack: PlatformSettings, schema: str, study_name: str) -> None:
    problem = made_up_problem()
    store = StudyStore(stack.decisions_db, 1, schema)
    study = store.open(study_name, problem.identity(), SPACE.current(), 0, None)
    assert study.ask().params == {}
    with psycopg.connect(**stack.decisions_db.connection_arguments()) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = %s", [schema]
        ).fetchall()
        assert len(tables) > 5
        for (table,) in tables:
            query = sql.SQL("SELECT t::text FROM {}.{} t").format(
                sql.Identifier(schema), sql.Identifier(table)
            )
            text = "".join(row[0] for row in connection.execute(query).fetchall())
            assert stack.decisions_db.password.get_secret_value() not in text


def test_a_study_of_another_problem_is_refused(stack: PlatformSettings, schema: str, study_name: str) -> None:
    store = StudyStore(stack.decisions_db, 1, schema)
    problem = made_up_problem()
    store.open(study_name, problem.identity(), SPACE.current(), 0, None)
    other = made_up_problem(flipped=3)
    assert problem.default_study() != other.default_study()
    with pytest.raises(SearchError, match=r"another problem \(other data_version\).*--study"):
        store.open(study_name, other.identity(), SPACE.current(), 0, None)
    reopened: Any = store.open(study_name, problem.identity(), SPACE.current(), 0, None)
    assert len(reopened.trials) == 1, "the present settings are tried once"
    store.delete(study_name)


def test_a_worker_killed_before_its_first_heartbeat_does_not_stay_for_ever(
    stack: PlatformSettings, schema: str, study_name: str
) -> None:
    store = StudyStore(stack.decisions_db, 1, schema)
    study: Any = store.open(study_name, made_up_problem().identity(), None, 0, None)
    study.ask()  # asked, then nothing more is heard of it
    store.fail_dead_trials(study)
    assert states(study.trials) == ["RUNNING"]
    time.sleep(store.silence.total_seconds() + 0.2)
    store.fail_dead_trials(study)
    assert states(study.trials) == ["FAIL"]
