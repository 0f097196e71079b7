"""Partitions, their age, and the take-over of a table without them, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from stack_testkit import conninfo, forget, unique
from test_decision_log import record

from common_service_libs.decision_record import encode
from common_service_libs.decision_schema import ensure_days, maintain, partition_of, prepare
from common_service_libs.decision_store import DecisionStore, main

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
SERVICE = "fraud_detection_api"
TODAY = date(2026, 3, 10)

# As the table stood before it was partitioned, and before the rung was recorded.
UNPARTITIONED = """
create table decision_records (
    request_id text primary key, service text not null, requested_at timestamptz not null,
    entity_ids jsonb not null, request jsonb not null, features jsonb not null, feature_status jsonb not null,
    model_name text not null, model_version integer not null, bundle_sha256 text not null,
    policy_version integer not null, policy_sha256 text not null, score double precision,
    decision text not null, reason_codes text[] not null, rules_fired text[] not null,
    degraded boolean not null, latency_ms double precision not null,
    recorded_at timestamptz not null default now());
create index decision_records_requested_at on decision_records (requested_at)
"""
ROW = """
insert into decision_records (request_id, service, requested_at, entity_ids, request, features,
    feature_status, model_name, model_version, bundle_sha256, policy_version, policy_sha256, score, decision,
    reason_codes, rules_fired, degraded, latency_ms)
values (%s, %s, %s, '{}', '{}', %s, '{}', 'm', 1, 'b', 1, 'p', 0.5, 'approve', '{LOW_RISK}', '{}', false, 1)
"""


@pytest.fixture
def schema() -> Iterator[str]:
    name = unique("partitions").replace("-", "_")
    with psycopg.connect(conninfo(), autocommit=True) as connection:
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
        yield name
        connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(name)))


def run(schema: str, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(conninfo(), options=f"-c search_path={schema}") as connection:
        cursor = connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


def partitions(schema: str) -> set[str]:
    query = "select relname from pg_class where relnamespace = %s::regnamespace and relispartition"
    return {row[0] for row in run(schema, query, schema) if "pkey" not in row[0]}


async def test_a_table_without_partitions_is_taken_over_with_all_its_rows(schema: str) -> None:
    run(schema, UNPARTITIONED)
    days = [datetime(2026, 1, 30, 23, 59, 59, 999999, tzinfo=UTC), datetime(2026, 1, 31, tzinfo=UTC)]
    for i in range(20):
        run(schema, ROW, f"old-{i}", SERVICE, days[i % 2], Jsonb({"x": 0.1 + 0.2}))
    before = run(schema, "select * from decision_records order by request_id")
    await asyncio.gather(*(prepare(conninfo(), schema) for _ in range(4)))
    columns = "request_id, service, requested_at, entity_ids, request, features, feature_status, model_name, "
    columns += "model_version, bundle_sha256, policy_version, policy_sha256, score, decision, reason_codes, "
    columns += "rules_fired, degraded, latency_ms, recorded_at"
    assert run(schema, f"select {columns} from decision_records order by request_id") == before
    assert run(schema, "select distinct rung, variant, policy_inputs from decision_records") == [
        ("online", "champion", {})
    ]
    counts = [run(schema, f"select count(*) from {partition_of(day.date())}") for day in days]
    assert counts == [[(10,)], [(10,)]]
    ids = "select count(*) from decision_ids join decision_records using (service, request_id, requested_at)"
    assert run(schema, ids) == [(20,)]
    assert run(schema, "select to_regclass('decision_records_unpartitioned')") == [(None,)]
    await prepare(conninfo(), schema)
    assert len(run(schema, "select 1 from decision_records")) == 20


async def test_a_partitioned_table_of_an_earlier_version_gets_the_columns_it_lacks(schema: str) -> None:
    await prepare(conninfo(), schema)
    run(schema, "alter table decision_records drop column policy_inputs, drop column result")
    await prepare(conninfo(), schema)
    run(schema, ROW, "new", SERVICE, datetime.now(UTC), Jsonb({}))
    assert run(schema, "select policy_inputs, result from decision_records") == [({}, None)]


async def test_a_record_of_a_day_without_partition_is_kept_and_gets_its_partition_later(schema: str) -> None:
    await prepare(conninfo(), schema)
    run(schema, ROW, "stray", SERVICE, datetime(2031, 5, 5, 12, tzinfo=UTC), Jsonb({}))
    assert run(schema, "select count(*) from decision_records_default") == [(1,)]
    done = await maintain(conninfo(), keep_days=0, today=TODAY, schema=schema)
    assert done.rows_moved == 1
    assert run(schema, "select request_id from decision_records_20310505") == [("stray",)]
    assert run(schema, "select count(*) from decision_records_default") == [(0,)]
    assert await ensure_days(conninfo(), [date(2031, 5, 5)], schema) == ()


async def test_maintenance_keeps_the_days_asked_for_and_forgets_older_ones_with_their_ids(
    schema: str,
) -> None:
    await prepare(conninfo(), schema)
    days = [TODAY - timedelta(days=back) for back in (0, 29, 30, 31, 400)]
    await ensure_days(conninfo(), days[:4], schema)  # the oldest row lies in the default partition
    for day in days:
        at = datetime(day.year, day.month, day.day, 23, 59, 59, tzinfo=UTC)
        run(schema, ROW, f"of-{day}", SERVICE, at, Jsonb({}))
        run(schema, "insert into decision_ids values (%s, %s, %s)", SERVICE, f"of-{day}", at)
    done = await maintain(conninfo(), keep_days=30, today=TODAY, schema=schema)
    assert done.partitions_dropped == (partition_of(days[3]),)
    assert done.ids_forgotten == 2
    kept = {f"of-{day}" for day in days[:3]}
    assert {row[0] for row in run(schema, "select request_id from decision_records")} == kept
    assert {row[0] for row in run(schema, "select request_id from decision_ids")} == kept
    assert {partition_of(TODAY + timedelta(days=ahead)) for ahead in range(3)} <= partitions(schema)
    again = await maintain(conninfo(), keep_days=30, today=TODAY, schema=schema)
    assert (again.partitions_created, again.partitions_dropped, again.ids_forgotten) == ((), (), 0)
    assert (await maintain(conninfo(), keep_days=0, today=TODAY, schema=schema)).partitions_dropped == ()


async def test_one_row_an_id_over_all_partitions_also_from_two_writers_at_once() -> None:
    prefix = unique("once")
    stores = [DecisionStore(conninfo(), deadline=10) for _ in range(4)]
    at = [f"2026-01-{day}T12:00:00.000000Z" for day in (28, 29, 30, 31)]
    batches = [
        [encode(record(f"{prefix}-{i}", requested_at=at[w], score=w / 4)) for i in range(50)]
        for w in range(4)
    ]
    try:
        inserted = await asyncio.gather(
            *(s.insert(b[::-1] if i % 2 else b) for i, (s, b) in enumerate(zip(stores, batches, strict=True)))
        )
        assert sum(inserted) == 50
        twice = [encode(record(f"{prefix}-twice", score=score)) for score in (0.1, 0.2)]
        assert await stores[0].insert(twice) == 1
        found = await stores[1].find(f"{prefix}-twice", SERVICE)
        assert found is not None
        assert found.score == 0.1
        other = encode(record(f"{prefix}-1", service="customer_churn_api"))
        assert await stores[0].insert([other]) == 1, "an id is one service's own"
    finally:
        for store in stores:
            await store.close()
        forget(prefix)


async def test_a_look_up_by_id_reads_one_partition() -> None:
    prefix = unique("lookup")
    store = DecisionStore(conninfo(), deadline=10)
    try:
        await store.insert([encode(record(prefix, requested_at="2026-01-30T12:00:00.000000Z"))])
        with psycopg.connect(conninfo()) as connection:
            plan = connection.execute(
                "explain select * from decisions.decision_records "
                "where service = %s and requested_at = %s and request_id = %s",
                (SERVICE, datetime(2026, 1, 30, 12, tzinfo=UTC), prefix),
            ).fetchall()
        text = "\n".join(row[0] for row in plan)
        assert "decision_records_20260130" in text
        assert "decision_records_default" not in text
    finally:
        await store.close()
        forget(prefix)


def test_the_command_maintains_and_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["maintain", "--keep-days", "0"]) == 0
    assert '"keep_days": 0' in capsys.readouterr().out
