"""Decision records in PostgreSQL: one connection that mends itself, a deadline on every call.

`python -m common_service_libs.decision_store maintain` creates the partitions ahead and drops those older
than `DECISIONS_RETENTION_DAYS`; a running service does the same once a day.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import sys
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from datetime import date
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg.rows import dict_row

from common_service_libs.decision_record import DecisionRecord
from common_service_libs.decision_schema import COLUMNS, NAMES, Maintained, ensure_days, maintain, prepare
from common_service_libs.errors import DecisionStoreUnavailable
from common_service_libs.recent_decisions import SELECT_RECENT, Cursor

logger = logging.getLogger(__name__)

T = TypeVar("T")
Parameters = tuple[Any, ...] | dict[str, Any]

_NAMES = ", ".join(NAMES)
# A spool may hold records of a version that did not know the later columns.
_VALUES = ", ".join(name if older is None else f"coalesce({name}, {older})" for name, _, _, older in COLUMNS)
_TYPED = ", ".join(f"{name} {kind}" for name, kind, _, _ in COLUMNS)

# One statement: an id and its record come together or not at all. Ids go in order, so that two writers of the
# same ids wait for each other instead of killing each other.
INSERT = f"""
with sent as (
    select distinct on (service, request_id) {_NAMES}
    from rows from (jsonb_to_recordset(%s::jsonb) as ({_TYPED})) with ordinality
    order by service, request_id, ordinality
), new as (
    insert into decisions.decision_ids (service, request_id, requested_at)
    select service, request_id, requested_at from sent order by service, request_id
    on conflict do nothing
    returning service, request_id
)
insert into decisions.decision_records ({_NAMES})
select {_VALUES} from sent join new using (service, request_id)
"""  # noqa: S608 - constants only

_RFC3339 = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'
FIND_ID = "select requested_at from decisions.decision_ids where service = %s and request_id = %s"
SELECT = f"""
select {_NAMES.replace("requested_at,", "to_char(requested_at at time zone 'UTC', %s) as requested_at,", 1)}
from decisions.decision_records where service = %s and requested_at = %s and request_id = %s
"""  # noqa: S608 - constants only

# Who inserts the claim decides. One that is left from a minute ago, or by an earlier process of the same
# place, is taken over; what is recorded needs none.
CLAIM = """
with mine as (
    insert into decisions.decision_claims as claim (service, request_id, owner)
    select %(service)s, %(id)s, %(owner)s
    where not exists (
        select from decisions.decision_ids where service = %(service)s and request_id = %(id)s
    )
    on conflict (service, request_id) do update set owner = excluded.owner, claimed_at = now()
    where claim.claimed_at < now() - interval '60 seconds' or starts_with(claim.owner, %(place)s)
    returning 1
)
select (
        select requested_at from decisions.decision_ids
        where service = %(service)s and request_id = %(id)s
    ) as requested_at,
    exists (select from mine) as mine
"""
RELEASE = "delete from decisions.decision_claims where service = %s and request_id = %s and owner = %s"
SWEEP = "delete from decisions.decision_claims where claimed_at < now() - interval '60 seconds'"


class _Stamp(msgspec.Struct):
    requested_at: str


_stamp = msgspec.json.Decoder(_Stamp)


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

    def __init__(self, conninfo: str, *, deadline: float, keep_days: int = 0) -> None:
        self._conninfo = conninfo
        self._deadline = deadline
        self._keep_days = keep_days
        self._connection: psycopg.AsyncConnection[dict[str, Any]] | None = None
        self._turn = asyncio.Lock()
        self._prepared: asyncio.Task[None] | None = None
        self._days: set[str] = set()

    async def insert(self, records: Sequence[bytes]) -> int:
        """Insert encoded records, skip those whose request id is there, and return how many were new.

        Raises DecisionStoreUnavailable, or RejectedRecords if one of the records can never be inserted.
        """
        document = "[" + ",".join(record.decode() for record in records) + "]"
        await self._have_partitions({_stamp.decode(record).requested_at[:10] for record in records})
        try:
            return (await self._run(INSERT, (document,)))[0]
        except psycopg.errors.CheckViolation as error:  # the default partition is gone
            self._prepared = None
            raise DecisionStoreUnavailable("the decision table has no place for a record") from error
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise RejectedRecords(str(error)) from None

    async def find(self, request_id: str, service: str) -> DecisionRecord | None:
        """Return the record of this service with that id, if any; raises DecisionStoreUnavailable."""
        _, found = await self._run(FIND_ID, (service, request_id))
        return await self._record(request_id, service, found[0]["requested_at"]) if found else None

    async def claim(
        self, request_id: str, service: str, *, owner: str, place: str
    ) -> tuple[DecisionRecord | None, bool]:
        """Return the record of an id and, without one, whether `owner` may decide now.

        `place` begins the owners of a worker and of those it took over from. Raises DecisionStoreUnavailable.
        """
        values = {"service": service, "id": request_id, "owner": owner, "place": place}
        _, (found,) = await self._run(CLAIM, values)
        if found["requested_at"] is None:
            return None, found["mine"]
        return await self._record(request_id, service, found["requested_at"]), False

    async def release(self, request_id: str, service: str, owner: str) -> None:
        """Give a claim up; raises DecisionStoreUnavailable."""
        await self._run(RELEASE, (service, request_id, owner))

    async def sweep(self) -> None:
        """Take old claims away; raises DecisionStoreUnavailable."""
        await self._run(SWEEP, ())

    async def _record(self, request_id: str, service: str, at: Any) -> DecisionRecord | None:
        # Planned with the time at hand: the other days' partitions are not touched.
        _, rows = await self._run(SELECT, (_RFC3339, service, at, request_id), prepare=False)
        if not rows:
            return None
        row = rows[0]
        row["reason_codes"], row["rules_fired"] = tuple(row["reason_codes"]), tuple(row["rules_fired"])
        # jsonb writes a large double without a point, which reads as a whole number; features are doubles.
        row["features"] = {k: float(v) if isinstance(v, int) else v for k, v in row["features"].items()}
        return DecisionRecord(**row)

    async def maintain(self) -> Maintained:
        """Create and drop partitions, see `decision_schema.maintain`; raises DecisionStoreUnavailable."""
        try:
            done = await maintain(self._conninfo, keep_days=self._keep_days)
        except (psycopg.Error, OSError) as error:
            raise DecisionStoreUnavailable("the decision database does not answer") from error
        self._days.clear()
        return done

    async def recent(self, service: str, cursor: Cursor, limit: int) -> list[dict[str, Any]]:
        """Return the newest decisions before the cursor, in short; raises DecisionStoreUnavailable."""
        return (await self._run(SELECT_RECENT, (service, *cursor, limit)))[1]

    async def close(self) -> None:
        """End the connection, and with it whatever still waits for an answer."""
        if self._prepared is not None:
            self._prepared.cancel()
            await asyncio.gather(self._prepared, return_exceptions=True)
            self._prepared = None
        await self._drop()

    async def _have_partitions(self, days: set[str]) -> None:
        """Create the partitions of days seen for the first time; without, the default one takes the rows."""
        if not (new := days - self._days):
            return
        try:
            await within(self._deadline, self._in_form())
        except (TimeoutError, psycopg.Error, OSError) as error:
            raise DecisionStoreUnavailable("the decision database does not answer") from error
        try:
            await within(self._deadline, ensure_days(self._conninfo, map(date.fromisoformat, new)))
        except (TimeoutError, ValueError, psycopg.Error, OSError) as error:
            logger.warning("no partition yet for new days", extra={"reason": str(error)})
            return
        self._days |= new

    async def _in_form(self) -> None:
        """Wait until the tables have their form. That may take longer than a call waits, and goes on then."""
        if self._prepared is None:
            self._prepared = asyncio.create_task(prepare(self._conninfo))
        task = self._prepared
        try:
            await asyncio.shield(task)
        finally:
            if task.done() and (task.cancelled() or task.exception()) and self._prepared is task:
                self._prepared = None

    async def _run(
        self, statement: str, parameters: Parameters, *, prepare: bool = True
    ) -> tuple[int, list[dict[str, Any]]]:
        try:
            return await within(self._deadline, self._in_turn(statement, parameters, prepare))
        except (psycopg.DataError, psycopg.IntegrityError):
            raise
        except (TimeoutError, psycopg.Error, OSError) as error:
            raise DecisionStoreUnavailable("the decision database does not answer") from error

    async def _in_turn(
        self, statement: str, parameters: Parameters, prepare: bool
    ) -> tuple[int, list[dict[str, Any]]]:
        async with self._turn:
            if self._connection is not None:
                # It may have died since the last call, which only using it can tell.
                with suppress(psycopg.OperationalError, psycopg.InterfaceError):
                    return await self._execute(statement, parameters, prepare)
            return await self._execute(statement, parameters, prepare)

    async def _execute(
        self, statement: str, parameters: Parameters, prepare: bool
    ) -> tuple[int, list[dict[str, Any]]]:
        try:
            connection = await self._connected()
            cursor = await connection.execute(statement, parameters, prepare=prepare)
            return cursor.rowcount, await cursor.fetchall() if cursor.description else []
        except (psycopg.DataError, psycopg.IntegrityError):
            raise
        except psycopg.errors.UndefinedTable:  # the database was emptied under us
            self._prepared = None
            self._days.clear()
            await self._drop()
            raise
        except BaseException:
            await self._drop()
            raise

    async def _connected(self) -> psycopg.AsyncConnection[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            await self._in_form()
            self._connection = await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, row_factory=dict_row, prepare_threshold=0
            )
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()


def main(arguments: list[str] | None = None) -> int:
    """Maintain the tables, print what was done as JSON, and return the exit code."""
    from common_service_libs.base_api_config import DecisionSettings  # noqa: PLC0415 - the command alone

    parser = argparse.ArgumentParser(prog="decision_store", description="Look after the decision tables.")
    parser.add_argument("action", choices=["maintain"])
    parser.add_argument("--keep-days", type=int, help="instead of DECISIONS_RETENTION_DAYS; 0 keeps all")
    options = parser.parse_args(arguments)
    settings = DecisionSettings()
    keep = settings.decisions_retention_days if options.keep_days is None else options.keep_days
    if keep < 0:
        parser.error("--keep-days is 0 or more")
    try:
        done = asyncio.run(maintain(settings.decisions_conninfo(), keep_days=keep))
    except (psycopg.Error, OSError) as error:
        print(f"decision store: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(json.dumps({"keep_days": keep, **dataclasses.asdict(done)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
