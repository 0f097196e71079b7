"""`decisions.shadow_decisions` in PostgreSQL: what a challenger would have decided; best effort."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec
import psycopg

from common_service_libs.decision_store import within
from common_service_libs.errors import DecisionStoreUnavailable

DDL = """
select pg_advisory_xact_lock(hashtext('decisions.shadow_decisions'));
create schema if not exists decisions;
create table if not exists decisions.shadow_decisions (
    request_id    text not null,
    bundle_sha256 text not null,
    service       text not null,
    model_name    text not null,
    model_version integer not null,
    score         double precision not null,
    decision      text not null,
    created_at    timestamptz not null,
    primary key (request_id, bundle_sha256)
);
create index if not exists shadow_decisions_created_at on decisions.shadow_decisions (created_at);
comment on table decisions.shadow_decisions is
    'One row a decision and shadow bundle; written by the decision services, rows may be missing.';
"""

_COLUMNS = "request_id, bundle_sha256, service, model_name, model_version, score, decision"
INSERT = f"""
insert into decisions.shadow_decisions ({_COLUMNS}, created_at)
select {_COLUMNS}, to_timestamp(created_at)
from jsonb_to_recordset(%s::jsonb) as r (
    request_id text, bundle_sha256 text, service text, model_name text, model_version integer,
    score double precision, decision text, created_at double precision
)
on conflict do nothing
"""  # noqa: S608 - constants only
FORGET = """
delete from decisions.shadow_decisions
where service = %s and created_at < now() - make_interval(days => %s)
"""


class ShadowDecision(msgspec.Struct, frozen=True):
    """What a shadow bundle would have decided; `created_at` in seconds since the epoch."""

    request_id: str
    bundle_sha256: str
    service: str
    model_name: str
    model_version: int
    score: float
    decision: str
    created_at: float


class ShadowStore:
    """Writes shadow decisions over one connection, opened when there is something to write."""

    def __init__(self, conninfo: str, *, deadline: float) -> None:
        self._conninfo = conninfo
        self._deadline = deadline
        self._connection: psycopg.AsyncConnection | None = None

    async def insert(self, rows: Sequence[ShadowDecision]) -> int:
        """Insert what is new and return its number; raises DecisionStoreUnavailable."""
        return await self._run(INSERT, (msgspec.json.encode(rows).decode(),))

    async def forget(self, service: str, days: int) -> int:
        """Remove what is older than `days`, and return how much; raises DecisionStoreUnavailable."""
        return await self._run(FORGET, (service, days))

    async def _run(self, statement: str, parameters: tuple[object, ...]) -> int:
        try:
            return await within(self._deadline, self._execute(statement, parameters))
        except (TimeoutError, psycopg.Error, OSError) as error:
            await self.close()
            raise DecisionStoreUnavailable("the decision database does not answer") from error

    async def _execute(self, statement: str, parameters: tuple[object, ...]) -> int:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            await self._connection.execute(DDL, prepare=False)
        return (await self._connection.execute(statement.encode(), parameters)).rowcount

    async def close(self) -> None:
        """Give the connection up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()
