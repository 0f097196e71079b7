"""A day's rows in database `decisions`: staged chunk by chunk, published in one transaction.

```
scoring.batch_runs         one row a table, model and day that is being scored: what it is scored from
scoring.batch_run_chunks   the chunks of a run that are staged, with how many entities each has
scoring.<table>_staging    their rows; readers look at scoring.<table> only
```
A run that was killed leaves its chunks; the next run of the day continues them when it would compute the same
rows (`identity`), and drops them otherwise. Publishing replaces the day and empties the staging rows at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any, Self

import numpy as np
import pandas as pd
import psycopg
from psycopg import sql

from common_ml_utils.errors import ModelDevelopmentError, first_line
from common_ml_utils.settings import DatabaseAddress

SCHEMA = "scoring"
ABANDONED_DAYS = 7  # leftovers of runs that nobody repeated are dropped after so long
RUN_TABLES = """
SELECT pg_advisory_xact_lock(hashtext('scoring.batch_scores'));
CREATE SCHEMA IF NOT EXISTS scoring;
CREATE TABLE IF NOT EXISTS scoring.batch_runs (
    run_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL,
    model_name text NOT NULL,
    data_date date NOT NULL,
    identity text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (table_name, model_name, data_date)
);
CREATE TABLE IF NOT EXISTS scoring.batch_run_chunks (
    run_id bigint NOT NULL,
    chunk integer NOT NULL,
    entities integer NOT NULL,
    PRIMARY KEY (run_id, chunk)
);
"""


@dataclass(frozen=True)
class DayTable:
    """A table that is replaced by day: its name in schema `scoring`, its columns and key, as SQL says them.

    Every such table begins with `model_name` and `data_date`.
    """

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]

    def ddl(self) -> str:
        """Return the statements that create the table and its staging table, if need be."""
        lines = ",\n    ".join(f"{name} {kind}" for name, kind in self.columns.items())
        return (
            f"CREATE TABLE IF NOT EXISTS {SCHEMA}.{self.name} (\n    {lines},\n"
            f"    PRIMARY KEY ({', '.join(self.key)})\n);\n"
            f"CREATE TABLE IF NOT EXISTS {SCHEMA}.{self.name}_staging (\n"
            f"    run_id bigint NOT NULL,\n    chunk integer NOT NULL,\n    {lines}\n);\n"
            f"CREATE INDEX IF NOT EXISTS {self.name}_staging_run"
            f" ON {SCHEMA}.{self.name}_staging (run_id, chunk);\n"
        )


BATCH_SCORES = DayTable(
    name="batch_scores",
    columns={
        "model_name": "text NOT NULL",
        "data_date": "date NOT NULL",
        "entity_key": "text NOT NULL",
        "model_version": "integer NOT NULL",
        "bundle_sha256": "text NOT NULL",
        "entity_ids": "jsonb NOT NULL",
        "request": "jsonb NOT NULL",
        "features": "jsonb NOT NULL",
        "score": "double precision NOT NULL CHECK (score BETWEEN 0 AND 1)",
        "scored_at": "timestamptz NOT NULL",
    },
    key=("model_name", "data_date", "entity_key"),
)
BATCH_RECOMMENDATIONS = DayTable(
    name="batch_recommendations",
    columns={
        "model_name": "text NOT NULL",
        "data_date": "date NOT NULL",
        "viewer_id": "bigint NOT NULL",
        "rank": "integer NOT NULL CHECK (rank >= 1)",
        "movie_id": "bigint NOT NULL",
        "score": "double precision NOT NULL",
        "model_version": "integer NOT NULL",
        "bundle_sha256": "text NOT NULL",
        "scored_at": "timestamptz NOT NULL",
    },
    key=("model_name", "data_date", "viewer_id", "rank"),
)


class DayRun:
    """One run that fills a day of a table; a second one of the same day is refused while this one lives."""

    def __init__(self, database: DatabaseAddress, table: DayTable, model_name: str, day: date) -> None:
        self.database = database
        self.table = table
        self.model_name = model_name
        self.day = day
        self.run_id = 0
        self.staged: dict[int, int] = {}
        self._lock: psycopg.Connection | None = None

    def __enter__(self) -> Self:
        """Take the day's lock, which ends with this process however it ends, and create what is missing."""
        with self._written():
            self._lock = psycopg.connect(**self.database.connection_arguments(), autocommit=True)
            name = f"{self.table.name} {self.model_name} {self.day}"
            taken = self._lock.execute(
                "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [name]
            ).fetchone()
            if taken != (True,):
                self._lock.close()
                raise ModelDevelopmentError(f"another run is scoring {self.day} with {self.model_name} now")
            with psycopg.connect(**self.database.connection_arguments()) as connection:
                connection.execute(RUN_TABLES + self.table.ddl())
        return self

    def __exit__(self, *_: object) -> None:
        """Let the next run of the day begin; what is staged stays."""
        if self._lock is not None:
            self._lock.close()

    def begin(self, identity: str) -> dict[int, int]:
        """Continue the run of this identity or begin anew, and return the entities of each staged chunk."""
        key = [self.table.name, self.model_name, self.day]
        with self._written(), psycopg.connect(**self.database.connection_arguments()) as connection:
            self._drop(connection, "started_at < now() - make_interval(days => %s)", [ABANDONED_DAYS])
            same = "table_name = %s AND model_name = %s AND data_date = %s"
            self._drop(connection, f"{same} AND identity <> %s", [*key, identity])
            row = connection.execute(
                "INSERT INTO scoring.batch_runs (table_name, model_name, data_date, identity)"
                " VALUES (%s, %s, %s, %s) ON CONFLICT (table_name, model_name, data_date)"
                " DO UPDATE SET started_at = now() RETURNING run_id",
                [*key, identity],
            ).fetchone()
            assert row is not None
            self.run_id = row[0]
        return self.finished()

    def finished(self) -> dict[int, int]:
        """Return how many entities each staged chunk has."""
        with self._written(), psycopg.connect(**self.database.connection_arguments()) as connection:
            rows = connection.execute(
                "SELECT chunk, entities FROM scoring.batch_run_chunks WHERE run_id = %s", [self.run_id]
            ).fetchall()
        self.staged = dict(rows)
        return self.staged

    def publish(self) -> int:
        """Replace the day by the staged rows, all or nothing, and return how many there are."""
        names = sql.SQL(", ").join(map(sql.Identifier, self.table.columns))
        table = sql.Identifier(SCHEMA, self.table.name)
        with self._written(), psycopg.connect(**self.database.connection_arguments()) as connection:
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE model_name = %s AND data_date = %s").format(table),
                [self.model_name, self.day],
            )
            copied = connection.execute(
                sql.SQL("INSERT INTO {t} ({n}) SELECT {n} FROM {s} WHERE run_id = %s").format(
                    t=table, n=names, s=_staging(self.table)
                ),
                [self.run_id],
            ).rowcount
            self._drop(connection, "run_id = %s", [self.run_id])
        return copied

    def _drop(self, connection: psycopg.Connection, condition: str, parameters: Sequence[Any]) -> None:
        """Delete runs of this table with all that they staged."""
        ours = f"table_name = %s AND {condition}"
        dropped = connection.execute(
            f"DELETE FROM scoring.batch_runs WHERE {ours} RETURNING run_id",  # noqa: S608 (constants)
            [self.table.name, *parameters],
        ).fetchall()
        runs = [run for (run,) in dropped]
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE run_id = ANY(%s)").format(_staging(self.table)), [runs]
        )
        connection.execute("DELETE FROM scoring.batch_run_chunks WHERE run_id = ANY(%s)", [runs])

    @contextmanager
    def _written(self) -> Iterator[None]:
        with written(self.day):
            yield


@dataclass(frozen=True)
class RunOfTable:
    """Where a chunk's rows go."""

    database: DatabaseAddress
    table: DayTable
    run_id: int


def stage_chunk(run: RunOfTable, chunk: int, rows: Sequence[Sequence[Any]], entities: int) -> None:
    """Stage one chunk with the note that it is done, in one transaction; doing it twice leaves it once.

    Any process may call it. A run that was dropped meanwhile (a newer one began) is an error, not a row.
    """
    staging = _staging(run.table)
    copy_into = sql.SQL("COPY {} ({}) FROM STDIN").format(
        staging, sql.SQL(", ").join(map(sql.Identifier, ["run_id", "chunk", *run.table.columns]))
    )
    key = [run.run_id, chunk]
    with psycopg.connect(**run.database.connection_arguments()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM scoring.batch_runs WHERE run_id = %s FOR KEY SHARE", [run.run_id])
        if cursor.fetchone() is None:
            raise ModelDevelopmentError(f"run {run.run_id} was replaced by a newer one")
        cursor.execute(sql.SQL("DELETE FROM {} WHERE run_id = %s AND chunk = %s").format(staging), key)
        with cursor.copy(copy_into) as copy:
            for row in rows:
                copy.write_row((*key, *row))
        cursor.execute(
            "INSERT INTO scoring.batch_run_chunks (run_id, chunk, entities) VALUES (%s, %s, %s)"
            " ON CONFLICT (run_id, chunk) DO UPDATE SET entities = excluded.entities",
            [*key, entities],
        )


@contextmanager
def written(day: date) -> Iterator[None]:
    """Turn PostgreSQL's errors into one that says which day was not written."""
    try:
        yield
    except psycopg.Error as error:
        raise ModelDevelopmentError(f"the scores of {day} were not written: {first_line(error)}") from error


def json_texts(frame: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Return each row's columns as the text of a JSON object; NaN and None, which JSON lacks, are null.

    Numbers keep every bit: a reader of the text computes the same score.

    >>> json_texts(pd.DataFrame({"a": [1, 2], "b": [0.1, None], "c": ['x"', None]}), ["a", "b", "c"])
    ['{"a": 1, "b": 0.1, "c": "x\\\\""}', '{"a": 2, "b": null, "c": null}']
    """
    chosen = list(names)
    if not chosen:
        return ["{}"] * len(frame)
    fields = ", ".join(json.dumps(name).replace("%", "%%") + ": %s" for name in chosen)
    template = "{" + fields + "}"
    columns = [_json_values(frame[name]) for name in chosen]
    return [template % values for values in zip(*columns, strict=True)]


def _json_values(column: pd.Series) -> list[str]:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind == "f":
        values = column.to_numpy(np.float64)
        if np.isinf(values).any():
            raise ModelDevelopmentError(f"{column.name}: an infinite value has no place in JSON")
        return ["null" if text == "nan" else text for text in map(repr, values.tolist())]
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iu":
        return list(map(repr, column.tolist()))
    return [json.dumps(None if _is_missing(value) else value, allow_nan=False) for value in column.tolist()]


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _staging(table: DayTable) -> sql.Identifier:
    return sql.Identifier(SCHEMA, f"{table.name}_staging")
