"""Run a backfill's plan: batches side by side, each in one transaction with the note that it is done."""
# ruff: noqa: S608 (the SQL is put together from the project's own models and table names)

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from functools import partial
from queue import SimpleQueue
from typing import Any

import psycopg
from tqdm import tqdm

from data_source_connectors.database_connector import Connection, DatabaseSettings, connect
from lineage.dbt_models import Model, Project

from .plan import CALENDAR_MODEL, Batch, Step, batch_sql

PROGRESS_AFTER_SECONDS = 1.0


class RawChangedError(Exception):
    """Raw rows changed while the backfill ran, so its batches are of different data."""


class TableMismatchError(Exception):
    """A table's columns are not those of its model; the message names both."""


class Backfill:
    """Rebuilds tables in the database of `connection`, which holds the lock of their builds."""

    def __init__(
        self, connection: Connection, database: DatabaseSettings, project: Project, workers: int
    ) -> None:
        self.connection = connection
        self.database = database
        self.project = project
        self.workers = workers
        self.ledger = f"{project.prefix}intermediate.backfill_batches"
        self.built_days = f"{project.prefix}intermediate.built_days"

    def missing_tables(self, targets: Iterable[str]) -> list[str]:
        """Return the tables among the targets and what they are made from that do not exist."""
        tables = [m for m in self.project.upstream(targets) if m.materialized in ("table", "incremental")]
        return [model.name for model in tables if not self._exists(model)]

    def first_raw_day(self, targets: Iterable[str]) -> date | None:
        """Return the first day of the raw rows that the targets are made from, None where there are none."""
        days = []
        for table, column in (("transactions", "tx_datetime"), ("ratings", "rated_at")):
            if table in {name for model in self.project.upstream(targets) for name in model.sources}:
                statement = f"select (min({column}) at time zone 'UTC')::date from {self._raw(table)}"
                row = _execute(self.connection, statement).fetchone()
                days += [row[0]] if row and row[0] else []
        return min(days, default=None)

    def run(self, steps: Sequence[Step], days: tuple[date, date], *, restart: bool) -> dict[str, object]:
        """Rebuild every batch that an unfinished run of the same plan has not done; return the figures."""
        self._prepare(steps)
        raw = self._raw_state(steps)
        plan = self._plan_id(steps, raw)
        done = self._open_ledger(plan, restart)
        todo = [(step, [b for b in step.batches if _key(b) not in done]) for step in steps]
        total = sum(batch.days for _, batches in todo for batch in batches)
        rows = 0
        with (
            self._connections() as pool,
            tqdm(total=total, unit="day", delay=PROGRESS_AFTER_SECONDS, disable=None) as bar,
        ):
            for step, batches in todo:
                bar.set_description(step.model.name)
                for batch, count in self._side_by_side(pool, step, batches, plan):
                    rows += count
                    bar.update(batch.days)
                _execute(self.connection, f"analyze {step.model.relation}")
        if self._raw_state(steps) != raw:
            raise RawChangedError("raw rows changed while the backfill ran: run it again")
        with self.connection.transaction():
            for step in steps:
                self._remember(step, days)
            _execute(self.connection, f"delete from {self.ledger}")
        return {
            "tables": len(steps),
            "batches": sum(len(step.batches) for step in steps),
            "batches_done_before": len(done),
            "rows": rows,
        }

    def _side_by_side(
        self, pool: SimpleQueue[Connection], step: Step, batches: Sequence[Batch], plan: str
    ) -> Iterator[tuple[Batch, int]]:
        """Yield each batch with its number of rows once it is done; the first failure ends the rest."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="backfill") as executor:
            running: dict[Future[int], Batch] = {
                executor.submit(self._rebuild, pool, step, batch, plan): batch for batch in batches
            }
            try:
                while running:
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        yield running.pop(future), future.result()
            finally:
                executor.shutdown(wait=True, cancel_futures=True)

    def _rebuild(self, pool: SimpleQueue[Connection], step: Step, batch: Batch, plan: str) -> int:
        connection = pool.get()
        try:
            with connection.transaction():
                _execute(connection, self._delete(step, batch))
                columns = ", ".join(f'"{column}"' for column in self._columns(connection, step.model))
                query = batch_sql(self.project, step, batch)
                relation = step.model.relation
                inserted = _execute(
                    connection,
                    f"insert into {relation} ({columns}) select {columns} from (\n{query}\n) as batch_rows",
                )
                _execute(
                    connection,
                    f"insert into {self.ledger} values (%s, %s, %s, %s)",
                    (plan, *_key(batch)),
                )
                return inserted.rowcount
        finally:
            pool.put(connection)

    def _delete(self, step: Step, batch: Batch) -> str:
        statement = f"delete from {step.model.relation}"
        if step.table is None:
            return statement
        statement += f" where {step.table.day} between '{batch.first}' and '{batch.last}'"
        if step.table.streamed:
            calendar = self.project.model(CALENDAR_MODEL).relation
            statement += (
                f" and {step.table.day} in (select tx_date from {calendar} union all"
                f" select tx_date from {self.built_days} where model = '{step.model.name}')"
            )
        return statement

    @contextmanager
    def _connections(self) -> Iterator[SimpleQueue[Connection]]:
        pool: SimpleQueue[Connection] = SimpleQueue()
        with ExitStack() as stack:
            for _ in range(self.workers):
                connection = stack.enter_context(connect(self.database, application_name="backfill worker"))
                # A batch takes as long as it takes; parallelism is between batches.
                _execute(connection, "set statement_timeout = 0")
                _execute(connection, "set max_parallel_workers_per_gather = 0")
                pool.put(connection)
            yield pool

    def _prepare(self, steps: Sequence[Step]) -> None:
        """Create what does not exist yet: views, tables with their indexes, the ledger."""
        execute = partial(_execute, self.connection)
        with self.connection.transaction():
            for name in ("staging", "intermediate", "features", "labels"):
                execute(f"create schema if not exists {self.project.prefix}{name}")
            execute(
                f"create table if not exists {self.ledger} (plan text not null, model text not null,"
                " first_day date not null, last_day date not null, primary key (plan, model, first_day))"
            )
            execute(
                f"create table if not exists {self.built_days} (model text not null, tx_date date not null,"
                " fingerprint bigint not null, primary key (model, tx_date))"
            )
            for model in self.project.upstream(step.model.name for step in steps):
                if model.materialized == "seed" and not self._exists(model):
                    raise TableMismatchError(
                        f"{model.relation} does not exist: run run_dbt_for_feast.sh once"
                    )
                if model.materialized == "view" and not self._exists(model):
                    execute(f"create view {model.relation} as\n{model.sql}")
            for step in steps:
                self._prepare_table(step.model)

    def _prepare_table(self, model: Model) -> None:
        if not self._exists(model):
            _execute(self.connection, f"create table {model.relation} as\n{model.sql}\nwith no data")
            for index in model.config.get("indexes", []):
                unique = "unique " if index.get("unique") else ""
                columns = ", ".join(index["columns"])
                _execute(self.connection, f"create {unique}index on {model.relation} ({columns})")
            return
        cursor = _execute(self.connection, f"select * from (\n{model.sql}\n) as computed limit 0")
        computed = [column.name for column in cursor.description or []]
        present = self._columns(self.connection, model)
        if sorted(computed) != sorted(present):
            raise TableMismatchError(
                f"{model.relation} has the columns {', '.join(present)}, its model has {', '.join(computed)}:"
                " make it a new version, or rebuild it by run_dbt_for_feast.sh --full-refresh"
            )

    def _exists(self, model: Model) -> bool:
        row = _execute(self.connection, "select to_regclass(%s)", (model.relation,)).fetchone()
        return bool(row and row[0])

    def _columns(self, connection: Connection, model: Model) -> list[str]:
        rows = _execute(
            connection,
            "select attname from pg_attribute"
            " where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum",
            (model.relation,),
        ).fetchall()
        return [name for (name,) in rows]

    def _raw(self, table: str) -> str:
        return f"{self.project.prefix}raw.{table}"

    def _raw_state(self, steps: Sequence[Step]) -> dict[str, tuple[int, int]]:
        """Return the count of each raw table's rows and a hash over them, whatever their order."""
        read = {
            table for m in self.project.upstream(step.model.name for step in steps) for table in m.sources
        }
        state = {}
        for table in sorted(read):
            statement = "select count(*), coalesce(bit_xor(hash_record_extended(t, 0)), 0) from"
            row = _execute(self.connection, f"{statement} {self._raw(table)} as t").fetchone()
            assert row is not None
            state[table] = (row[0], row[1])
        return state

    def _plan_id(self, steps: Sequence[Step], raw: dict[str, tuple[int, int]]) -> str:
        content = [raw, [(batch_sql(self.project, step, b), _key(b)) for step in steps for b in step.batches]]
        return hashlib.sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()

    def _open_ledger(self, plan: str, restart: bool) -> set[tuple[str, date, date]]:
        """Forget the batches of other plans; return those of this one that are done."""
        keep = "" if restart else plan
        forgotten = _execute(self.connection, f"delete from {self.ledger} where plan <> %s", (keep,))
        rows = _execute(self.connection, f"select model, first_day, last_day from {self.ledger}").fetchall()
        if forgotten.rowcount:
            print(
                f"gave up an unfinished backfill of other days, rows or models ({forgotten.rowcount} batches)"
            )
        if rows:
            print(f"continuing: {len(rows)} batches were done before", flush=True)
        return {(model, first, last) for model, first, last in rows}

    def _remember(self, step: Step, days: tuple[date, date]) -> None:
        """Note for dbt which days the table now stands for, as far as that is certain.

        A changed day shows in the rows of the days after it too, as far as a window reaches: then it is
        noted only if the backfill went up to the last day that rows have.
        """
        if step.table is None or step.model.materialized != "incremental":
            return
        ((fingerprint,),) = self.project.arguments_of_hook(
            step.model.name, "post_hook", "remember_built_days"
        )
        calendar = self.project.model(CALENDAR_MODEL).relation
        first = min(batch.first for batch in step.batches if batch.first is not None)
        row = _execute(self.connection, f"select max(tx_date) from {calendar}").fetchone()
        end = row[0] if row and row[0] else days[1]
        if step.table.lookback_days and days[1] <= end:
            return
        last = (
            max(end, days[1]) if days[1] >= end + timedelta(days=bool(step.table.lookback_days)) else days[1]
        )
        execute = partial(_execute, self.connection)
        bounds = (step.model.name, first, last)
        execute(
            f"delete from {self.built_days} where model = %s and tx_date between %s and %s",
            bounds,
        )
        execute(
            f"insert into {self.built_days} select %s, tx_date, {fingerprint} from {calendar}"
            " where tx_date between %s and %s",
            bounds,
        )


def _key(batch: Batch) -> tuple[str, date, date]:
    """Return what names a batch in the ledger; a whole table has no days, and stands for all of them."""
    return batch.model, batch.first or date.min, batch.last or date.max


def _execute(
    connection: Connection, statement: str, parameters: Sequence[object] | None = None
) -> psycopg.Cursor[tuple[Any, ...]]:
    """Run a statement of our own making; without parameters a percent sign is one."""
    return connection.execute(statement.encode(), parameters)
