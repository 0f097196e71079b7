"""The decision table and both doors on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from service_testkit import contract, fraud_bundle
from stack_testkit import conninfo, forget, setting, unique
from test_decision_log import record

from common_service_libs.batch_door import main
from common_service_libs.decision_record import encode
from common_service_libs.decision_store import DecisionStore, RejectedRecords
from common_service_libs.errors import DecisionStoreUnavailable
from common_service_libs.recent_decisions import DecisionPage, page_of, read_cursor

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
SERVICE = "fraud_detection_api"
DAY = date(1999, 12, 31)

# As the model project creates it; a fresh stack has no batch score yet.
BATCH_SCORES = """
create schema if not exists scoring;
create table if not exists scoring.batch_scores (
    model_name text not null, data_date date not null, entity_key text not null,
    model_version integer not null, bundle_sha256 text not null, entity_ids jsonb not null,
    request jsonb not null, features jsonb not null, score double precision not null,
    scored_at timestamptz not null, primary key (model_name, data_date, entity_key)
);
"""


async def test_a_record_comes_back_exactly_and_is_inserted_once() -> None:
    prefix = unique("store")
    store = DecisionStore(conninfo(), deadline=5)
    features = {"a": 0.1 + 0.2, "b": None, "c": "Month-to-month", "d": 5e-324, "e": 1e300}
    records = [
        record(
            f"{prefix}-{i}", features=features, score=None if i == 0 else i / 7, rules_fired=("x", "shadow:y")
        )
        for i in range(5)
    ]
    try:
        assert await store.insert([encode(r) for r in records[:3]]) == 3
        assert await store.insert([encode(r) for r in [*records, records[4]]]) == 2
        for original in records:
            assert await store.find(original.request_id, SERVICE) == original
        assert await store.find(records[0].request_id, "customer_churn_api") is None
        assert await store.find(f"{prefix}-none", SERVICE) is None
    finally:
        await store.close()
        forget(prefix)


async def test_pages_of_recent_decisions_neither_skip_nor_repeat_what_has_the_same_time() -> None:
    prefix = unique("recent")
    service = f"{prefix}-service"
    store = DecisionStore(conninfo(), deadline=5)
    times = ["2026-01-31T12:00:00.000001Z"] * 5 + ["2026-01-31T12:00:00.000002Z"] * 2
    records = [record(f"{prefix}-{i}", service=service, requested_at=at) for i, at in enumerate(times)]
    expected = [f"{prefix}-{i}" for i in (6, 5, 4, 3, 2, 1, 0)]
    try:
        await store.insert([encode(r) for r in records])
        found, before = [], None
        while True:
            page = page_of(await store.recent(service, read_cursor(before), 3), 2)
            found += page["decisions"]
            if (before := page["next"]) is None:
                break
        assert [row["request_id"] for row in found] == expected
        assert (
            DecisionPage.model_validate({"decisions": found, "next": None}).decisions[0].requested_at
            == times[6]
        )
        earlier = await store.recent(service, read_cursor("2026-01-31T12:00:00.000002Z"), 9)
        assert [row["request_id"] for row in earlier] == expected[2:]
    finally:
        await store.close()
        forget(prefix)


async def test_a_record_that_can_never_be_inserted_is_told_from_a_database_that_is_away() -> None:
    store = DecisionStore(conninfo(), deadline=5)
    with pytest.raises(RejectedRecords):
        await store.insert([encode(record("x", features={"text": "a\x00b"}))])
    await store.close()
    away = DecisionStore("host=127.0.0.1 port=9 dbname=x user=x connect_timeout=2", deadline=1)
    with pytest.raises(DecisionStoreUnavailable):
        await away.find("x", SERVICE)
    await away.close()


async def test_a_connection_that_the_server_ended_is_replaced_without_an_error() -> None:
    store = DecisionStore(conninfo(), deadline=5)
    assert await store.find("nothing", SERVICE) is None
    with psycopg.connect(conninfo(), autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = '' and usename = current_user and pid <> pg_backend_pid()"
        )
    assert await store.find("nothing", SERVICE) is None
    await store.close()


async def test_a_query_that_takes_too_long_is_given_up_at_the_deadline() -> None:
    store = DecisionStore(conninfo(), deadline=0.3)
    await store.find("nothing", SERVICE)
    with psycopg.connect(conninfo()) as blocking:
        blocking.execute("lock table decisions.decision_ids in access exclusive mode")
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(DecisionStoreUnavailable):
            await store.find("nothing", SERVICE)
        assert loop.time() - started < 0.6
    await asyncio.sleep(0.2)
    assert await store.find("nothing", SERVICE) is None
    await store.close()


# --- the batch door ---------------------------------------------------------------------------------


def _rows(sha256: str) -> list[tuple[Any, ...]]:
    names = contract("fraud_detection_v1").feature_names
    rows = []
    for i, (score, amount) in enumerate([(0.01, 20.0), (0.5, 20.0), (0.95, 20.0), (0.01, 400.0)]):
        features = dict.fromkeys(names, 2) | {"tx_amount": amount, "terminal_fraud_risk_7d": None}
        rows.append(
            (
                "fraud-detection-model", DAY, str(i), 1, sha256,
                json.dumps({"customer_id": i, "terminal_id": i}),
                json.dumps({"tx_amount": amount, "tx_timestamp": 946641600.0}), json.dumps(features), score,
            )
        )  # fmt: skip
    return rows


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sha256 = fraud_bundle(tmp_path / "bundle")
    spool = tmp_path / "spool"
    shutil.copytree(tmp_path / "bundle", spool / "bundles" / sha256)
    monkeypatch.setenv("SPOOL_DIR", str(spool))
    setting("MLFLOW_TRACKING_URI")
    with psycopg.connect(conninfo()) as connection:
        connection.execute(BATCH_SCORES)
        _clear(connection)
        connection.cursor().executemany(
            "insert into scoring.batch_scores values (%s, %s, %s, %s, %s, %s, %s, %s, %s, now())",
            _rows(sha256),
        )
    yield
    with psycopg.connect(conninfo()) as connection:
        _clear(connection)


def _clear(connection: psycopg.Connection[Any]) -> None:
    connection.execute("delete from scoring.batch_scores where data_date = %s", (DAY,))
    if connection.execute("select to_regclass('decisions.batch_decisions')").fetchone() != (None,):
        connection.execute("delete from decisions.batch_decisions where data_date = %s", (DAY,))


def _decided() -> list[tuple[Any, ...]]:
    with psycopg.connect(conninfo()) as connection:
        return connection.execute(
            "select entity_key, score, decision, reason_codes, rules_fired, policy_version, policy_sha256 "
            "from decisions.batch_decisions where data_date = %s order by entity_key",
            (DAY,),
        ).fetchall()


def test_a_day_is_decided_and_a_rerun_changes_nothing(
    scores: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--service", SERVICE, "--date", str(DAY)]
    assert main(arguments) == 0
    first = _decided()
    assert [row[2] for row in first] == ["approve", "review", "decline", "review"]
    assert first[3][3] == ["AMOUNT_OVER_LIMIT"]
    assert main(arguments) == 0
    assert _decided() == first
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["decisions"] == {"approve": 1, "review": 2, "decline": 1}
    with psycopg.connect(conninfo()) as connection:
        connection.execute(
            "delete from scoring.batch_scores where data_date = %s and entity_key = '0'", (DAY,)
        )
    assert main(arguments) == 0
    assert len(_decided()) == 3


def test_a_day_without_scores_fails_and_changes_nothing(
    scores: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--service", SERVICE, "--date", "1999-12-30"]) == 1
    assert "no rows" in capsys.readouterr().err


def test_scores_of_a_bundle_that_cannot_be_had_fail_and_leave_the_day_as_it_was(
    scores: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--service", SERVICE, "--date", str(DAY)]) == 0
    before = _decided()
    shutil.rmtree(Path(os.environ["SPOOL_DIR"]) / "bundles")
    with psycopg.connect(conninfo()) as connection:
        connection.execute(
            "update scoring.batch_scores set model_version = 999999 where data_date = %s", (DAY,)
        )
    assert main(["--service", SERVICE, "--date", str(DAY)]) == 1
    assert "bundle" in capsys.readouterr().err
    assert _decided() == before
