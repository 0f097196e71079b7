"""`decisions.decision_records` in PostgreSQL: one connection that mends itself, a deadline on every call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from common_service_libs.decision_record import DecisionRecord
from common_service_libs.errors import DecisionStoreUnavailable
from common_service_libs.recent_decisions import SELECT_RECENT, Cursor

T = TypeVar("T")

# Services start together, and `create ... if not exists` is not safe against itself: one at a time.
DDL = """
select pg_advisory_xact_lock(hashtext('decisions.decision_records'));
create schema if not exists decisions;
create table if not exists decisions.decision_records (
    request_id     text primary key,
    service        text not null,
    requested_at   timestamptz not null,
    entity_ids     jsonb not null,
    request        jsonb not null,
    features       jsonb not null,
    feature_status jsonb not null,
    model_name     text not null,
    model_version  integer not null,
    bundle_sha256  text not null,
    policy_version integer not null,
    policy_sha256  text not null,
    score          double precision,
    decision       text not null,
    reason_codes   text[] not null,
    rules_fired    text[] not null,
    degraded       boolean not null,
    latency_ms     double precision not null,
    recorded_at    timestamptz not null default now(),
    rung           text not null default 'online',
    variant        text not null default 'champion',
    policy_inputs  jsonb not null default '{}',
    result         jsonb
);
alter table decisions.decision_records
    add column if not exists rung text not null default 'online',
    add column if not exists variant text not null default 'champion',
    add column if not exists policy_inputs jsonb not null default '{}',
    add column if not exists result jsonb;
create index if not exists decision_records_requested_at on decisions.decision_records (requested_at);
create index if not exists decision_records_recent
    on decisions.decision_records (service, requested_at, request_id);
comment on table decisions.decision_records is 'One row a decision; written by the decision services.'
"""

_COLUMNS = """request_id, service, requested_at, entity_ids, request, features, feature_status, model_name,
    model_version, bundle_sha256, policy_version, policy_sha256, score, decision, reason_codes, rules_fired,
    degraded, latency_ms, rung, variant, policy_inputs, result"""

# A spool may hold records of a version that did not know them.
_LATER_COLUMNS = """coalesce(rung, 'online'), coalesce(variant, 'champion'), coalesce(policy_inputs, '{}')"""

INSERT = f"""
insert into decisions.decision_records ({_COLUMNS})
select {_COLUMNS.replace("rung, variant, policy_inputs", _LATER_COLUMNS)}
from jsonb_to_recordset(%s::jsonb) as r (
    request_id text, service text, requested_at timestamptz, entity_ids jsonb, request jsonb, features jsonb,
    feature_status jsonb, model_name text, model_version integer, bundle_sha256 text, policy_version integer,
    policy_sha256 text, score double precision, decision text, reason_codes text[], rules_fired text[],
    degraded boolean, latency_ms double precision, rung text, variant text, policy_inputs jsonb,
    result jsonb
)
on conflict (request_id) do nothing
"""  # noqa: S608 - constants only

SELECT = f"""
select {_COLUMNS.replace("requested_at,", "to_char(requested_at at time zone 'UTC', %s) as requested_at,", 1)}
from decisions.decision_records where request_id = %s and service = %s
"""  # noqa: S608 - constants only
_RFC3339 = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'


class RejectedRecords(Exception):
    """The database refuses the records themselves, not the connection."""


async def within(deadline: float, work: Awaitable[T]) -> T:
    """Return what `work` returns; raise TimeoutError after `deadline` s, not waiting for its clean-up."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=deadline)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(lambda late: late.cancelled() or late.exception())
    if not done:
        raise TimeoutError
    return task.result()


class DecisionStore:
    """Writes and reads decision records over one connection; callers take turns."""

    def __init__(self, conninfo: str, *, deadline: float) -> None:
        self._conninfo = conninfo
        self._deadline = deadline
        self._connection: psycopg.AsyncConnection[dict[str, Any]] | None = None
        self._turn = asyncio.Lock()
        self._created = False

    async def insert(self, records: Sequence[bytes]) -> int:
        """Insert encoded records, skip those whose request id is there, and return how many were new.

        Raises DecisionStoreUnavailable, or RejectedRecords if one of the records can never be inserted.
        """
        document = "[" + ",".join(record.decode() for record in records) + "]"
        try:
            return (await self._run(INSERT, (document,)))[0]
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise RejectedRecords(str(error)) from None

    async def find(self, request_id: str, service: str) -> DecisionRecord | None:
        """Return the record of this service with that id, if any; raises DecisionStoreUnavailable."""
        _, rows = await self._run(SELECT, (_RFC3339, request_id, service))
        if not rows:
            return None
        row = rows[0]
        row["reason_codes"], row["rules_fired"] = tuple(row["reason_codes"]), tuple(row["rules_fired"])
        # jsonb writes a large double without a point, which reads as a whole number; features are doubles.
        row["features"] = {k: float(v) if isinstance(v, int) else v for k, v in row["features"].items()}
        return DecisionRecord(**row)

    async def recent(self, service: str, cursor: Cursor, limit: int) -> list[dict[str, Any]]:
        """Return the newest decisions before the cursor, in short; raises DecisionStoreUnavailable."""
        return (await self._run(SELECT_RECENT, (service, *cursor, limit)))[1]

    async def close(self) -> None:
        """End the connection, and with it whatever still waits for an answer."""
        await self._drop()

    async def _run(self, statement: str, parameters: tuple[Any, ...]) -> tuple[int, list[dict[str, Any]]]:
        try:
            return await within(self._deadline, self._in_turn(statement, parameters))
        except (psycopg.DataError, psycopg.IntegrityError):
            raise
        except (TimeoutError, psycopg.Error, OSError) as error:
            raise DecisionStoreUnavailable("the decision database does not answer") from error

    async def _in_turn(self, statement: str, parameters: tuple[Any, ...]) -> tuple[int, list[dict[str, Any]]]:
        async with self._turn:
            if self._connection is not None:
                # It may have died since the last call, which only using it can tell.
                with suppress(psycopg.OperationalError, psycopg.InterfaceError):
                    return await self._execute(statement, parameters)
            return await self._execute(statement, parameters)

    async def _execute(self, statement: str, parameters: tuple[Any, ...]) -> tuple[int, list[dict[str, Any]]]:
        try:
            connection = await self._connected()
            cursor = await connection.execute(statement, parameters)
            return cursor.rowcount, await cursor.fetchall() if cursor.description else []
        except (psycopg.DataError, psycopg.IntegrityError):
            raise
        except BaseException:
            await self._drop()
            raise

    async def _connected(self) -> psycopg.AsyncConnection[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, row_factory=dict_row, prepare_threshold=0
            )
            if not self._created:
                await self._connection.execute(DDL, prepare=False)
                self._created = True
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection, self._created = self._connection, None, False
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()
