"""Expand and contract, tried: services of two versions on one database of decisions, whichever came first.

The older version is a commit that did not know the newest table (`decision_claims`). Each version brings the
tables to the form it knows and writes its records, in a PostgreSQL of its own.
"""

import os
import subprocess
from pathlib import Path

import psycopg
import pytest

from server_tools.backup.drill_containers import Platform, docker, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).resolve().parents[3]
OLDER = "f6609b5~1"
PYTHON = Path(os.environ.get("LOCAL_DIR") or REPOSITORY / ".local") / "venvs/ml-model-services/bin/python"
# Prepare the tables and write a record, as a service does when it starts.
SCRIPT = """
import asyncio, json, sys
import psycopg
from common_service_libs.decision_schema import prepare
from common_service_libs.decision_store import INSERT
conninfo, name = sys.argv[1:]
asyncio.run(prepare(conninfo))
row = dict(request_id=name, service="fraud_detection_api", requested_at="2026-11-22T03:00:00Z", entity_ids={},
    request={}, features={}, feature_status={}, model_name="m", model_version=1, bundle_sha256="b",
    policy_version=1, policy_sha256="p", score=0.5, decision="approve", reason_codes=["LOW_RISK"],
    rules_fired=[], degraded=False, latency_ms=1.0)
with psycopg.connect(conninfo) as connection:
    connection.execute(INSERT, (json.dumps([row]),))
"""


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> dict[str, Path]:
    older = tmp_path_factory.mktemp("older")
    archive = older / "older.tar"
    command = ["git", "archive", f"--output={archive}", OLDER, "ml-model-services/common_service_libs"]
    if subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode:
        pytest.skip(f"this clone is too shallow to hold {OLDER}")
    subprocess.run(["tar", "-xf", archive, "-C", older], check=True)
    return {"older": older / "ml-model-services", "newer": REPOSITORY / "ml-model-services"}


@pytest.fixture(scope="module")
def server():
    if docker("image", "inspect", "mlops/backup:dev", check=False).returncode:
        pytest.skip("there is no image mlops/backup:dev: make images")
    with Platform() as stack:
        port = stack.start("postgres")
        conninfo = f"host=127.0.0.1 port={port} user=postgres password={stack.password}"
        wait_for(lambda: psycopg.connect(f"{conninfo} dbname=postgres"), "PostgreSQL")
        yield conninfo


@pytest.mark.parametrize(
    "order", [("older", "newer", "older", "newer"), ("newer", "older", "newer")], ids=" then ".join
)
def test_services_of_two_versions_write_to_one_database(order, versions, server):
    database = "_".join(order)
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"create database {database}")
    conninfo = f"{server} dbname={database}"
    for number, version in enumerate(order):
        command = [PYTHON, "-c", SCRIPT, conninfo, f"{number}-{version}"]
        environment = {**os.environ, "PYTHONPATH": str(versions[version])}
        done = subprocess.run(
            command, cwd=versions[version], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{version} as number {number}: {done.stderr[-1500:]}"
    with psycopg.connect(conninfo) as connection:
        found = connection.execute("select request_id from decisions.decision_records order by 1").fetchall()
        listed = connection.execute(
            "select tablename from pg_tables where schemaname = 'decisions'"
        ).fetchall()
    assert [row[0] for row in found] == [f"{number}-{version}" for number, version in enumerate(order)]
    assert ("decision_claims",) in listed
