"""Real runs through Airflow on the stack's PostgreSQL, against a repository of small stand-in commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psycopg2
import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
RUN_DAG = ROOT / "scripts" / "run_dag.py"
SCRIPTS = "data_transformation_pipelines/python_scripts_feast"
COMMANDS = {
    "feature-store-management": [
        f"{SCRIPTS}/load_transactions.py",
        f"{SCRIPTS}/load_subscribers.py",
        f"{SCRIPTS}/load_movies.py",
        "data_quality/check.py",
        "scripts/run_dbt_for_feast.sh",
        "scripts/run_feast_apply.sh",
        "scripts/run_feast_materialize_incremental.sh",
        "data_transformation_pipelines/stream_jobs_feast/process_transaction_stream.py",
    ],
    "ml-model-development": [
        "models/fraud_detection_xgboost/src/train.py",
        "models/fraud_detection_xgboost/src/evaluate.py",
        "models/fraud_detection_xgboost/src/predict_batch.py",
        "models/customer_churn_lightgbm/src/train.py",
        "models/customer_churn_lightgbm/src/evaluate.py",
        "models/customer_churn_lightgbm/src/predict_batch.py",
        "models/movie_recommendation_hybrid/src/train.py",
        "models/movie_recommendation_hybrid/src/evaluate.py",
        "models/movie_recommendation_hybrid/src/predict_batch.py",
    ],
    "ml-model-services": ["common_service_libs/batch_door.py"],
    "ml-reporting-and-monitoring-logic": ["advanced_monitoring_scripts/calculate_concept_drift_scores.py"],
}
# Writes what it was called with; fails while a file named `broken` lies in the repository.
STAND_IN = """#!/usr/bin/env python
import json, os, pathlib, sys
repository = pathlib.Path(os.environ["PYTHONPATH"]).parent
call = {"argv": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "cwd": os.path.relpath(os.getcwd(), repository),
        "private": [name for name in os.environ if "AIRFLOW" in name]}
with (repository / "calls.jsonl").open("a") as log:
    log.write(json.dumps(call) + "\\n")
print("reading the landing file")
broken = repository / "broken"
if broken.exists() and broken.read_text() in sys.argv[0]:
    sys.exit("row 17: amount is not a number")
"""


class Outcome(NamedTuple):
    code: int
    output: str
    dags: dict
    calls: list


@pytest.fixture(scope="session")
def settings():
    """The stack's settings; without them these tests can't say anything."""
    needed = ("AIRFLOW_HOME", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN")
    missing = [name for name in needed if not os.environ.get(name, "").startswith(("/", "postgresql"))]
    assert not missing, f"{', '.join(missing)} missing: run through `local_stack exec`, or load stack.env"
    return os.environ


@pytest.fixture
def repository(tmp_path):
    """A repository whose roots hold stand-ins for every command the DAGs call."""
    for root, commands in COMMANDS.items():
        venv = tmp_path / ".local" / "venvs" / root / "bin"
        venv.mkdir(parents=True)
        (venv / "python").symlink_to(sys.executable)
        for command in commands:
            path = tmp_path / root / command
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(STAND_IN)
            path.chmod(0o755)
    for service in ("fraud_detection_api", "customer_churn_api"):
        (tmp_path / "ml-model-services" / "services" / service).mkdir(parents=True)
    return tmp_path


def run_dags(settings, repository, *arguments) -> Outcome:
    (repository / "calls.jsonl").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, RUN_DAG, *arguments, "--json", repository / "run.json"],
        env=_environment(settings, repository),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    report = json.loads((repository / "run.json").read_text()) if (repository / "run.json").exists() else {}
    calls = repository / "calls.jsonl"
    return Outcome(
        done.returncode,
        done.stdout + done.stderr,
        {dag["dag_id"]: dag for dag in report.get("dags", [])},
        [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else [],
    )


def _environment(settings, repository) -> dict[str, str]:
    return {
        **settings,
        "MLOPS_REPOSITORY": str(repository),
        "LOCAL_DIR": str(repository / ".local"),
        "DATA_DIR": "/data",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
    }


def states(outcome: Outcome, dag_id: str) -> dict[str, str]:
    return {task["task_id"]: task["state"] for task in outcome.dags[dag_id]["tasks"]}


def test_the_whole_loop_runs_in_one_process_with_the_documented_arguments(settings, repository):
    outcome = run_dags(
        settings,
        repository,
        'run_dbt_feast_models={"snapshot_date": "2026-10-01"}',
        "materialize_feast_online_store",
        "train_fraud_detection_xgboost",
        "train_customer_churn_lightgbm",
        "train_movie_recommendation_hybrid",
        "score_daily_transactions_fraud",
        "score_daily_subscribers_churn",
        "recommend_daily_movies",
        "check_fraud_model_drift",
        "--logical-date",
        "2026-11-21",
    )
    assert outcome.code == 0, outcome.output
    assert [call["argv"] for call in outcome.calls][7:] == [
        ["run_feast_materialize_incremental.sh", "2026-11-21T00:00:00+00:00"],
        ["train.py", "--as-of", "2026-11-21T00:00:00+00:00"],
        *sorted([["evaluate.py", "gate"], ["evaluate.py", "handbook"]], key=order_seen(outcome)),
        ["train.py", "--as-of", "2026-11-21T00:00:00+00:00"],
        ["evaluate.py", "gate"],
        ["train.py", "--as-of", "2026-11-21T00:00:00+00:00"],
        ["evaluate.py", "gate"],
        ["predict_batch.py", "--date", "2026-11-20"],
        ["batch_door.py", "--service", "fraud_detection_api", "--date", "2026-11-20"],
        ["predict_batch.py", "--date", "2026-11-20"],
        ["batch_door.py", "--service", "customer_churn_api", "--date", "2026-11-20"],
        ["predict_batch.py", "--date", "2026-11-20"],
        ["calculate_concept_drift_scores.py", "--model", "fraud-detection-model", "--date", "2026-11-20"],
    ]
    loaded = [call["argv"] for call in outcome.calls[:3]]
    assert ["load_transactions.py", "--source", "/data/landing/transactions"] in loaded
    assert ["load_subscribers.py", "--snapshot-date", "2026-10-01"] in loaded
    assert ["load_movies.py"] in loaded
    assert [call["argv"] for call in outcome.calls[3:7]] == [
        ["check.py", "--level", "raw"],
        ["run_dbt_for_feast.sh"],
        ["check.py", "--level", "staging", "--level", "features"],
        ["run_feast_apply.sh"],
    ]
    assert [call for call in outcome.calls if call["private"]] == [], "Airflow's settings reached a command"
    assert {dag["state"] for dag in outcome.dags.values()} == {"success"}
    assert {call["cwd"] for call in outcome.calls if call["argv"][0] == "train.py"} == {
        "ml-model-development/models/fraud_detection_xgboost",
        "ml-model-development/models/customer_churn_lightgbm",
        "ml-model-development/models/movie_recommendation_hybrid",
    }
    scored = [call["cwd"] for call in outcome.calls if call["argv"][0] == "predict_batch.py"]
    assert [Path(folder).name for folder in scored] == [
        "fraud_detection_xgboost",
        "customer_churn_lightgbm",
        "movie_recommendation_hybrid",
    ]
    for asset in ("fraud_batch_decisions", "churn_batch_decisions", "batch_recommendations"):
        assert newest_event_extra(settings, asset)["date"] == "2026-11-20"


def test_the_stream_is_drained_and_then_left_alone(settings, repository):
    outcome = run_dags(settings, repository, "stream_market_data_to_feast")
    assert outcome.code == 0, outcome.output
    assert [(call["cwd"], call["argv"]) for call in outcome.calls] == [
        ("feature-store-management", ["process_transaction_stream.py", "--until-caught-up"])
    ]


def order_seen(outcome: Outcome):
    """Two tasks that don't depend on each other may run in any order: take the one that was seen."""
    return [call["argv"] for call in outcome.calls].index


def newest_event_extra(settings, asset: str) -> dict:
    url = settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "select e.extra from asset_event e join asset a on a.id = e.asset_id"
                " where a.name = %s order by e.timestamp desc limit 1",
                (asset,),
            )
            return cursor.fetchone()[0]
    finally:
        connection.close()


def test_a_failed_command_fails_the_run_says_why_and_succeeds_when_repaired(settings, repository):
    (repository / "broken").write_text("load_transactions")
    failed = run_dags(settings, repository, "run_dbt_feast_models", "materialize_feast_online_store")
    assert failed.code == 1
    assert states(failed, "run_dbt_feast_models") == {
        "load_transactions": "failed",
        "load_subscribers": "skipped",
        "load_movies": "success",
        "check_raw": "upstream_failed",
        "build_feature_tables": "upstream_failed",
        "check_features": "upstream_failed",
        "apply_feast": "upstream_failed",
    }
    assert "row 17: amount is not a number" in failed.output
    assert "exited with 1" in failed.output
    assert "materialize_feast_online_store" not in failed.dags, "the next DAG must not run"

    (repository / "broken").unlink()
    repaired = run_dags(settings, repository, "run_dbt_feast_models", "materialize_feast_online_store")
    assert repaired.code == 0, repaired.output
    assert states(repaired, "run_dbt_feast_models") == {
        "load_transactions": "success",
        "load_subscribers": "skipped",
        "load_movies": "success",
        "check_raw": "success",
        "build_feature_tables": "success",
        "check_features": "success",
        "apply_feast": "success",
    }
    today = datetime.now(UTC).date().isoformat()
    assert repaired.calls[-1]["argv"][1] == f"{today}T00:00:00+00:00", "the default moment is midnight today"


@pytest.mark.parametrize(
    ("level", "ran"),
    [
        ("raw", ["load_transactions", "check_raw"]),
        ("features", ["load_transactions", "check_raw", "build_feature_tables", "check_features"]),
    ],
)
def test_a_failed_check_publishes_nothing(settings, repository, level, ran):
    check = repository / "feature-store-management" / "data_quality" / "check.py"
    check.write_text(STAND_IN + f"\nif {level!r} in sys.argv:\n    sys.exit('amounts_are_numbers failed')\n")
    before = newest_event_id(settings, "feature_tables")
    failed = run_dags(settings, repository, "run_dbt_feast_models", "materialize_feast_online_store")
    assert failed.code == 1
    assert "amounts_are_numbers failed" in failed.output
    after = states(failed, "run_dbt_feast_models")
    assert [task for task in ran if after[task] == "success"] == ran[:-1]
    assert after[ran[-1]] == "failed"
    assert after["apply_feast"] == "upstream_failed"
    assert "run_feast_apply.sh" not in [call["argv"][0] for call in failed.calls]
    assert "materialize_feast_online_store" not in failed.dags
    assert newest_event_id(settings, "feature_tables") == before, "no asset, so neither DAG behind it starts"


def newest_event_id(settings, asset: str) -> int | None:
    url = settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "select max(e.id) from asset_event e join asset a on a.id = e.asset_id where a.name = %s",
                (asset,),
            )
            return cursor.fetchone()[0]
    finally:
        connection.close()


def test_airflows_own_command_runs_a_dag_and_reports_failure(settings, repository):
    """What the documentation tells a person to type; the DAG's one retry is waited for."""
    (repository / "broken").write_text("calculate_concept_drift_scores")
    command = [
        Path(sys.executable).parent / "airflow",
        "dags",
        "test",
        "check_fraud_model_drift",
        "2026-11-21",
    ]
    environment = _environment(settings, repository)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode != 0
    assert "row 17: amount is not a number" in done.stdout + done.stderr
    calls = (repository / "calls.jsonl").read_text().splitlines()
    assert len(calls) == 2, "the first try and one retry"


def test_an_unknown_dag_and_an_invalid_parameter_are_refused_before_anything_runs(settings, repository):
    unknown = run_dags(settings, repository, "materialize_feast_online_store", "no_such_dag")
    assert (unknown.code, unknown.calls) == (2, [])
    assert "no_such_dag" in unknown.output
    invalid = run_dags(settings, repository, 'score_daily_transactions_fraud={"date": "yesterday"}')
    assert invalid.code != 0
    assert invalid.calls == []
    assert "date" in invalid.output


def test_stopping_the_run_stops_the_command(settings, repository):
    pid_file = repository / "pid"
    slow = repository / "feature-store-management" / "scripts" / "run_feast_materialize_incremental.sh"
    slow.write_text(f"#!/bin/sh\nsleep 300 & echo $! > {pid_file}\nwait\n")
    process = subprocess.Popen(
        [sys.executable, RUN_DAG, "materialize_feast_online_store", "train_customer_churn_lightgbm"],
        env=_environment(settings, repository),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        child = int(pid_file.read_text())
        process.terminate()
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "train_customer_churn_lightgbm" not in output
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split(") ")[1][0] == "Z", "the command still runs"
