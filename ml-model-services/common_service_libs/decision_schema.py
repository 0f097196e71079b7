"""The tables of decisions in PostgreSQL: partitioned by day, brought to their form, and kept to their age.

`decisions.decision_records` holds a partition for each UTC day of `requested_at` and a default partition,
so that no record is ever refused for its time. A key of a partitioned table has to hold the column it is
partitioned by, so the promise of one record a request id stands in `decisions.decision_ids`: it is written in
the same statement, and with it a look-up by id touches one partition only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

SCHEMA = "decisions"

# Name, type, what else the column says, and what an older record that does not know it holds instead.
COLUMNS: tuple[tuple[str, str, str, str | None], ...] = (
    ("request_id", "text", "not null", None),
    ("service", "text", "not null", None),
    ("requested_at", "timestamptz", "not null", None),
    ("entity_ids", "jsonb", "not null", None),
    ("request", "jsonb", "not null", None),
    ("features", "jsonb", "not null", None),
    ("feature_status", "jsonb", "not null", None),
    ("model_name", "text", "not null", None),
    ("model_version", "integer", "not null", None),
    ("bundle_sha256", "text", "not null", None),
    ("policy_version", "integer", "not null", None),
    ("policy_sha256", "text", "not null", None),
    ("score", "double precision", "", None),
    ("decision", "text", "not null", None),
    ("reason_codes", "text[]", "not null", None),
    ("rules_fired", "text[]", "not null", None),
    ("degraded", "boolean", "not null", None),
    ("latency_ms", "double precision", "not null", None),
    ("rung", "text", "not null default 'online'", "'online'"),
    ("variant", "text", "not null default 'champion'", "'champion'"),
    ("policy_inputs", "jsonb", "not null default '{}'", "'{}'"),
    ("result", "jsonb", "", None),
)
NAMES = tuple(column[0] for column in COLUMNS)
_ALL = (*NAMES, "recorded_at")

LOCK = "select pg_advisory_xact_lock(hashtext('decisions.decision_records'))"
STATE = """
select (select relkind::text from pg_class where oid = to_regclass('decision_records')) as kind,
    to_regclass('decision_records_default') is not null
        and to_regclass('decision_ids') is not null
        and to_regclass('decision_claims') is not null as complete,
    array(select attname::text from pg_attribute
        where attrelid = to_regclass('decision_records') and attnum > 0 and not attisdropped)
        as columns
"""
_NEWLINE = ",\n    "
CREATE = f"""
create table if not exists decision_records (
    {_NEWLINE.join(f"{name} {kind} {rest}".rstrip() for name, kind, rest, _ in COLUMNS)},
    recorded_at timestamptz not null default now(),
    primary key (service, requested_at, request_id)
) partition by range (requested_at);
comment on table decision_records is
    'One row a decision, partitioned by day; written by the decision services.';
create table if not exists decision_records_default
    partition of decision_records default;
create table if not exists decision_ids (
    service      text not null,
    request_id   text not null,
    requested_at timestamptz not null,
    primary key (service, request_id)
);
create index if not exists decision_ids_requested_at on decision_ids using brin (requested_at);
comment on table decision_ids is 'The key of decision_records over all its partitions.';
create unlogged table if not exists decision_claims (
    service    text not null,
    request_id text not null,
    owner      text not null,
    claimed_at timestamptz not null default now(),
    primary key (service, request_id)
);
comment on table decision_claims is 'Request ids that a worker is deciding; a minute old at most.'
"""
ADD_COLUMNS = "alter table decision_records " + ", ".join(
    f"add column if not exists {name} {kind} {rest}".rstrip()
    for name, kind, rest, older in COLUMNS
    if older is not None or name == "result"
)
SET_ASIDE = """
alter table decision_records rename to decision_records_unpartitioned;
alter table decision_records_unpartitioned drop constraint if exists decision_records_pkey;
drop index if exists decision_records_requested_at;
drop index if exists decision_records_recent
"""
PARTITIONS = """
select c.relname::text as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'decision_records'::regclass
"""
PREFIX = "decision_records_"
DAYS_AHEAD = 2
LOCK_TIMEOUT = "set local lock_timeout = '5s'"


@dataclass(frozen=True)
class Maintained:
    """What a run of maintenance did; `rows_moved` left the default partition for their day's."""

    partitions_created: tuple[str, ...]
    partitions_dropped: tuple[str, ...]
    rows_moved: int
    ids_forgotten: int


def partition_of(day: date) -> str:
    """Return the name of a day's partition.

    >>> partition_of(date(2026, 1, 31))
    'decision_records_20260131'
    """
    return f"{PREFIX}{day:%Y%m%d}"


def day_of(partition: str) -> date | None:
    """Return the day of a partition, None for the default one.

    >>> day_of("decision_records_20260131")
    datetime.date(2026, 1, 31)
    >>> day_of("decision_records_default")
    """
    text = partition.removeprefix(PREFIX)
    return datetime.strptime(text, "%Y%m%d").date() if text.isdecimal() else None  # noqa: DTZ007 - a day


@asynccontextmanager
async def _connected(conninfo: str, schema: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Connect for one transaction, in which names without a schema are those of `schema`.

    Services start together, and `create ... if not exists` is not safe against itself: one at a time.
    """
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        name = sql.Identifier(schema)
        await connection.execute(LOCK)
        await connection.execute(sql.SQL("create schema if not exists {}").format(name))
        await connection.execute(sql.SQL("set local search_path to {}").format(name))
        yield connection


async def prepare(conninfo: str, schema: str = SCHEMA) -> None:
    """Bring the tables to their form, whatever they are now; a table without partitions is taken over.

    The take-over is one transaction: readers wait for it, and a kill leaves everything as it was.
    """
    async with _connected(conninfo, schema) as connection:
        state = await _state(connection)
        if _in_form(state):
            return
        kind, _, columns = state
        if kind == "r":
            await connection.execute(SET_ASIDE)
        await connection.execute(CREATE)
        if kind == "r":
            await _take_over(connection, columns)
        elif kind == "p":
            await connection.execute(ADD_COLUMNS)
        today = _today()
        await _create_days(connection, [today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1)])


async def _state(connection: psycopg.AsyncConnection[Any]) -> tuple[str | None, bool, list[str]]:
    (row,) = await (await connection.execute(STATE)).fetchall()
    return row[0], row[1], row[2]


def _in_form(state: tuple[str | None, bool, list[str]]) -> bool:
    kind, complete, columns = state
    return kind == "p" and complete and set(_ALL) <= set(columns)


async def _take_over(connection: psycopg.AsyncConnection[Any], columns: list[str]) -> None:
    await _create_days(connection, await _days_in(connection, "decision_records_unpartitioned"))
    names = _names([name for name in _ALL if name in columns])
    await connection.execute(
        sql.SQL(
            "insert into decision_records ({names}) select {names} from decision_records_unpartitioned"
        ).format(names=names)
    )
    await connection.execute(
        "insert into decision_ids (service, request_id, requested_at) "
        "select service, request_id, requested_at from decision_records_unpartitioned"
    )
    await connection.execute("drop table decision_records_unpartitioned")


async def _days_in(connection: psycopg.AsyncConnection[Any], table: str) -> set[date]:
    rows = await connection.execute(
        sql.SQL("select distinct (requested_at at time zone 'UTC')::date from {}").format(
            sql.Identifier(table)
        )
    )
    return {row[0] for row in await rows.fetchall()}


async def ensure_days(conninfo: str, days: Iterable[date], schema: str = SCHEMA) -> tuple[str, ...]:
    """Create the partitions of these days that are not there, and return their names."""
    async with _connected(conninfo, schema) as connection:
        await connection.execute(LOCK_TIMEOUT)
        return (await _create_days(connection, days))[0]


async def maintain(
    conninfo: str, *, keep_days: int, today: date | None = None, schema: str = SCHEMA
) -> Maintained:
    """Create the partitions ahead, empty the default one, drop what is older than `keep_days` (0: keep)."""
    today = today or _today()
    await prepare(conninfo, schema)
    async with _connected(conninfo, schema) as connection:
        await connection.execute(LOCK_TIMEOUT)
        dropped: list[str] = []
        forgotten = 0
        if keep_days:
            oldest = today - timedelta(days=keep_days)
            dropped = await _drop_before(connection, oldest)
            forgotten = await _forget_before(connection, oldest)
        days = await _days_in(connection, "decision_records_default")
        days |= {today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1)}
        created, moved = await _create_days(connection, days)
    return Maintained(created, tuple(dropped), moved, forgotten)


async def _create_days(
    connection: psycopg.AsyncConnection[Any], days: Iterable[date]
) -> tuple[tuple[str, ...], int]:
    """Create partitions beside the table and attach them: readers and writers of other days do not wait."""
    there = {row[0] for row in await (await connection.execute(PARTITIONS)).fetchall()}
    created, moved = [], 0
    for day in sorted(set(days)):
        name = partition_of(day)
        if name in there:
            continue
        parts = {
            "partition": sql.Identifier(name),
            "from_day": sql.Literal(f"{day} 00:00:00+00"),
            "to_day": sql.Literal(f"{day + timedelta(days=1)} 00:00:00+00"),
            "names": _names(_ALL),
        }
        await connection.execute(
            sql.SQL("create table {partition} (like decision_records including defaults)").format(**parts)
        )
        strays = await connection.execute(
            sql.SQL(
                "with strays as (delete from decision_records_default "
                "where requested_at >= {from_day} and requested_at < {to_day} returning *) "
                "insert into {partition} ({names}) select {names} from strays"
            ).format(**parts)
        )
        moved += strays.rowcount
        await connection.execute(
            sql.SQL(
                "alter table decision_records attach partition {partition} "
                "for values from ({from_day}) to ({to_day})"
            ).format(**parts)
        )
        created.append(name)
    return tuple(created), moved


async def _drop_before(connection: psycopg.AsyncConnection[Any], oldest: date) -> list[str]:
    dropped = []
    for row in await (await connection.execute(PARTITIONS)).fetchall():
        day = day_of(row[0])
        if day is None or day >= oldest:
            continue
        partition = sql.Identifier(row[0])
        await connection.execute(
            sql.SQL("alter table decision_records detach partition {}").format(partition)
        )
        await connection.execute(sql.SQL("drop table {}").format(partition))
        dropped.append(row[0])
    return sorted(dropped)


async def _forget_before(connection: psycopg.AsyncConnection[Any], oldest: date) -> int:
    before = datetime(oldest.year, oldest.month, oldest.day, tzinfo=UTC)
    await connection.execute("delete from decision_records_default where requested_at < %s", (before,))
    ids = await connection.execute("delete from decision_ids where requested_at < %s", (before,))
    return ids.rowcount


def _names(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name in names)


def _today() -> date:
    return datetime.now(UTC).date()
