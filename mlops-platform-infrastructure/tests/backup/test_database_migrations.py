"""MLflow's and Airflow's databases of an earlier version, brought to today's as the stacks' jobs do."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from server_tools.backup.drill_containers import Platform, docker, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
LOCAL = Path(os.environ.get("LOCAL_DIR") or ROOT.parent / ".local")
AIRFLOW = LOCAL / "venvs/mlops-orchestration-pipelines/bin/airflow"
# MLflow 3.0 (tables of logged models), Airflow 3.1.8.
OLDER_MLFLOW, OLDER_AIRFLOW = "400f98739977", "3.1.8"
# The tables as the older version left them.
MAKE_OLDER = """
import sys
from alembic import command
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base
engine = utils.create_sqlalchemy_engine_with_retry(sys.argv[1])
Base.metadata.create_all(engine)
config = utils._get_alembic_config(engine.url.render_as_string(hide_password=False))
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, sys.argv[2])
"""
VERIFY = """
import sys
from mlflow.store.db import utils
utils._verify_schema(utils.create_sqlalchemy_engine_with_retry(sys.argv[1]))
"""
MIGRATE = "import sys; from mlflow_guard.server import migrate; migrate(sys.argv[1])"


@pytest.fixture(scope="module")
def server():
    if docker("image", "inspect", "mlops/backup:dev", check=False).returncode:
        pytest.skip("there is no image mlops/backup:dev: make images")
    with Platform() as stack:
        port = stack.start("postgres")
        wait_for(
            lambda: psycopg.connect(host="127.0.0.1", port=port, user="postgres", password=stack.password),
            "PostgreSQL",
        )
        yield stack, port


def database(server, name: str) -> tuple[str, psycopg.Connection]:
    stack, port = server
    where = {"host": "127.0.0.1", "port": port, "user": "postgres", "password": stack.password}
    with psycopg.connect(**where, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"create database {name}")
    url = f"postgresql+psycopg2://postgres:{stack.password}@127.0.0.1:{port}/{name}"
    return url, psycopg.connect(**where, dbname=name, autocommit=True)


def run(*command, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in command], env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_mlflows_older_database_is_refused_then_migrated_with_its_rows(server):
    url, connection = database(server, "mlflow")
    made = run(sys.executable, "-c", MAKE_OLDER, url, OLDER_MLFLOW)
    assert made.returncode == 0, made.stderr[-1500:]
    connection.execute("insert into experiments (name, lifecycle_stage) values ('kept', 'active')")
    refused = run(sys.executable, "-c", VERIFY, url)
    assert "out-of-date" in refused.stderr
    for _ in range(2):  # safe to rerun
        migrated = run(sys.executable, "-c", MIGRATE, url, PYTHONPATH=str(ROOT / "images" / "mlflow_server"))
        assert migrated.returncode == 0, migrated.stderr[-1500:]
    assert run(sys.executable, "-c", VERIFY, url).returncode == 0
    assert connection.execute("select count(*) from experiments where name = 'kept'").fetchone() == (1,)
    connection.close()


def test_airflows_older_database_is_refused_then_migrated_with_its_rows(server, tmp_path):
    url, connection = database(server, "airflow")
    settings = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url, "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }  # fmt: skip
    made = run(AIRFLOW, "db", "migrate", "--to-version", OLDER_AIRFLOW, **settings)
    assert made.returncode == 0, (made.stdout + made.stderr)[-1500:]
    connection.execute("insert into variable (key, val) values ('kept', '1')")
    older = connection.execute("select version_num from alembic_version").fetchone()
    waiting = run(AIRFLOW, "db", "check-migrations", "--migration-wait-timeout", "0", **settings)
    assert waiting.returncode != 0
    migrated = run(AIRFLOW, "db", "migrate", **settings)
    assert migrated.returncode == 0, (migrated.stdout + migrated.stderr)[-1500:]
    checked = run(AIRFLOW, "db", "check-migrations", "--migration-wait-timeout", "1", **settings)
    assert checked.returncode == 0, (checked.stdout + checked.stderr)[-1500:]
    assert connection.execute("select version_num from alembic_version").fetchone() != older
    assert connection.execute("select val from variable where key = 'kept'").fetchone() == ("1",)
    connection.close()
