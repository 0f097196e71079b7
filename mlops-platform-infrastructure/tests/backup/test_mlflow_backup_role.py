"""The role of MLflow's dump: made where a database stands, reads it and what comes later, writes nothing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
import yaml

from local_stack import postgres, wheels
from server_tools import places, secrets
from server_tools.backup import logical
from server_tools.backup.errors import BackupError

INIT = places.SETUPS / "feature_store_backend/init/create_databases.sh"
HOST = "127.0.0.1"


class Server(NamedTuple):
    port: int
    secrets: Path
    data: Path

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def connect(self, user: str, database: str, secret: str) -> psycopg.Connection:
        return psycopg.connect(
            host=HOST, port=self.port, user=user, dbname=database, password=self.secret(secret),
            autocommit=True, connect_timeout=5,
        )  # fmt: skip

    def dumper(self, database: str = "mlflow") -> psycopg.Connection:
        return self.connect("mlflow_backup", database, "mlflow_backup_db_password")

    def create_databases(self) -> None:
        """Run the job's own script; its secrets lie elsewhere here."""
        script = INIT.read_text()
        assert "/run/secrets/" in script
        subprocess.run(
            ["bash", "-c", script.replace("/run/secrets/", f"{self.secrets}/")],
            env={
                "PATH": f"{wheels.postgres('psql').parent}:{os.environ['PATH']}",
                "PGHOST": HOST, "PGPORT": str(self.port), "PGUSER": "postgres",
            },
            check=True, capture_output=True, text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A PostgreSQL in which MLflow has worked before, as the servers of an earlier version left it."""
    folder = tmp_path_factory.mktemp("postgres")
    secrets.create(folder / "secrets")
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        found = Server(probe.getsockname()[1], folder / "secrets", folder / "data")
    postgres.prepare(found.data, found.secret("postgres_password"))
    process = subprocess.Popen(
        postgres.command(found.data, found.port), cwd=found.data,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ready = [wheels.postgres("pg_isready"), "-q", "-h", HOST, "-p", str(found.port)]
        deadline = time.monotonic() + 30
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.1)
        password = found.secret("mlflow_db_password")
        with found.connect("postgres", "postgres", "postgres_password") as connection:
            connection.execute(f"create role mlflow login password '{password}'".encode())
            connection.execute("create database mlflow owner mlflow")
        with found.connect("mlflow", "mlflow", "mlflow_db_password") as connection:
            connection.execute("create table runs (id serial primary key, name text)")
            connection.execute("insert into runs (name) values ('a'), ('b')")
        # What `make up-server1` does, twice; a migration of MLflow comes after it.
        found.create_databases()
        found.create_databases()
        with found.connect("mlflow", "mlflow", "mlflow_db_password") as connection:
            connection.execute("create table logged_models (id serial primary key, name text)")
            connection.execute("insert into logged_models (name) values ('c')")
        yield found
    finally:
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(found.data, ignore_errors=True)


@pytest.fixture
def settings(tmp_path: Path, server: Server) -> dict[str, str]:
    """What the scheduler's container has, at this server's address, read from its Compose file."""
    content = yaml.safe_load((places.SETUPS / "airflow/docker-compose.yml").read_text())
    scheduler = content["services"]["airflow-scheduler"]
    given = {name: value for name, value in scheduler["environment"].items() if name.startswith("MLFLOW_DB")}
    for secret in scheduler["secrets"]:
        source, target = (secret, secret) if isinstance(secret, str) else (secret["source"], secret["target"])
        if target.startswith(("mlflow_db", "mlflow_backup")):
            given[target.upper()] = server.secret(source)
    return given | {
        "MLFLOW_DB_HOST": HOST, "MLFLOW_DB_PORT": str(server.port), "DATA_DIR": str(tmp_path),
    }  # fmt: skip


def test_the_dump_is_made_with_what_the_scheduler_has(
    settings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert settings["MLFLOW_DB_USER"] == "mlflow_backup"
    assert settings["MLFLOW_BACKUP_PASSWORD"]
    assert logical.back_up_mlflow(settings) == 0
    assert "2 tables, 3 rows verified" in capsys.readouterr().out
    kept = "repository/config" if shutil.which("restic") else "mlflow-*.dump.age"
    assert len(list((tmp_path / "backup/mlflow-db").glob(kept))) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "insert into runs values (9)",
        "delete from logged_models",
        "create table mine (id int)",
        "drop table runs",
    ],
)
def test_the_role_writes_nothing_even_where_it_turns_its_own_default_off(server: Server, statement: str):
    with server.dumper() as connection:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute(statement.encode())
        connection.execute("set default_transaction_read_only = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


@pytest.mark.parametrize("database", ["feature_store", "decisions", "airflow"])
def test_the_role_opens_no_other_database(server: Server, database: str):
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        server.dumper(database)


def test_without_the_default_the_next_migration_would_break_the_dump(
    server: Server, settings: dict[str, str]
):
    with server.connect("postgres", "mlflow", "postgres_password") as connection:
        connection.execute("revoke select on logged_models from mlflow_backup")
    with pytest.raises(BackupError, match="logged_models"):
        logical.back_up_mlflow(settings)
    server.create_databases()
    assert logical.back_up_mlflow(settings) == 0


def test_rules_of_pg_hba_that_came_later_are_read(server: Server):
    def loaded() -> object:
        with server.connect("postgres", "postgres", "postgres_password") as connection:
            return connection.execute("select pg_conf_load_time()").fetchone()

    before, deadline = loaded(), time.monotonic() + 5
    server.create_databases()
    # The server is told by a signal.
    while (after := loaded()) == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert after != before
