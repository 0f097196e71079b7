"""The scripts say what is missing, and refuse what they do not know, before they touch anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from common_test_utils import ROOT_DIR

DATABASE = {
    "FEATURE_STORE_DB_HOST": "127.0.0.1",
    "FEATURE_STORE_DB_PORT": "1",
    "FEATURE_STORE_DB_NAME": "nowhere",
    "FEATURE_STORE_DB_USER": "nobody",
    "FEATURE_STORE_DB_PASSWORD": "nothing",
}
REDIS = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "1", "REDIS_PASSWORD": "nothing"}


def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "VENV": str(Path(sys.prefix)), **variables}
    return subprocess.run(
        [str(ROOT_DIR / "scripts" / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("script", "needs"),
    [
        ("run_dbt_for_feast.sh", DATABASE),
        ("run_feast_apply.sh", DATABASE | REDIS),
        ("run_feast_materialize_incremental.sh", DATABASE | REDIS),
    ],
)
def test_missing_variables_are_all_named(script: str, needs: dict[str, str]):
    done = run(script)
    assert done.returncode == 2
    assert f"{script}: not set: {' '.join(needs)} (" in done.stderr


def test_one_missing_variable_is_enough_to_stop():
    done = run("run_feast_apply.sh", **{**DATABASE, **REDIS, "REDIS_PASSWORD": ""})
    assert done.returncode == 2
    assert "not set: REDIS_PASSWORD (" in done.stderr


@pytest.mark.parametrize("script", ["run_dbt_for_feast.sh", "run_feast_apply.sh"])
def test_an_unknown_argument_is_refused_with_the_usage(script: str):
    done = run(script, "--everything", **DATABASE, **REDIS)
    assert done.returncode == 2
    assert "usage:" in done.stderr


@pytest.mark.parametrize("date", ["yesterday", "2026-02-30", "2026-1-1", "2026-01-01'}; drop"])
def test_what_is_no_date_does_not_reach_dbt(date: str):
    done = run("run_dbt_for_feast.sh", "--from-date", date, **DATABASE)
    assert done.returncode == 2
    assert "no date YYYY-MM-DD" in done.stderr


def test_from_date_needs_its_date():
    done = run("run_dbt_for_feast.sh", "--from-date", **DATABASE)
    assert done.returncode == 2
    assert "--from-date needs a date" in done.stderr


def test_a_missing_environment_says_how_to_make_it(tmp_path: Path):
    done = run("run_feast_apply.sh", **{**DATABASE, **REDIS, "VENV": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 2
    assert f"no feast in {tmp_path}: run `make setup`" in done.stderr


@pytest.mark.parametrize("script", ["run_dbt_for_feast.sh", "run_feast_apply.sh"])
def test_help_needs_nothing(script: str):
    done = run(script, "--help")
    assert done.returncode == 0
    assert "usage:" in done.stdout + done.stderr
