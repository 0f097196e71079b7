"""The two tables of daily windows: how Spark writes them, and how they compare with those that stand.

| target | rewritten in one step |
|---|---|
| a folder or address | `TABLE/event_date=D/`, each day as a whole (Spark's dynamic overwrite) |
| `postgresql:SCHEMA` | the span's rows of `SCHEMA.TABLE`, in one transaction |

Either way a second run of the same days leaves the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import LiteralString

import psycopg
from psycopg import sql
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # noqa: N812 (its name everywhere)

from data_source_connectors.database_connector import Connection, DatabaseSettings, connect

from .daily_windows import WINDOW_DAYS, Span
from .raw_sources import FETCH_ROWS, READS_A_CORE, date_of, day_number, jdbc_options, list_names, remove

POSTGRESQL = "postgresql:"
LOCK_WAIT_SECONDS = 600
SHOWN_EXAMPLES = 5
DAY_FOLDER = re.compile(r"event_date=(\d{4}-\d{2}-\d{2})")


class TableError(Exception):
    """A feature table can't be written or compared; the message says which and why."""


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """A feature table's name, key and columns with their PostgreSQL types, in order."""

    name: str
    entity: str
    values: dict[str, LiteralString]

    @property
    def columns(self) -> dict[str, LiteralString]:
        """All columns and their types."""
        times: dict[str, LiteralString] = {
            "event_timestamp": "timestamptz",
            "created_timestamp": "timestamptz",
        }
        return {self.entity: "bigint", **times, **self.values}


def _over_windows(pattern: str, postgres_type: LiteralString) -> dict[str, LiteralString]:
    return {pattern.format(n): postgres_type for n in WINDOW_DAYS}


CUSTOMER_DAILY = FeatureTable(
    "fct_customer_daily",
    "customer_id",
    _over_windows("customer_tx_count_full_{}d", "bigint")
    | _over_windows("customer_tx_amount_sum_full_{}d", "double precision"),
)
TERMINAL_DAILY = FeatureTable(
    "fct_terminal_daily",
    "terminal_id",
    _over_windows("terminal_tx_count_full_{}d", "bigint")
    | _over_windows("terminal_labelled_tx_count_{}d", "bigint")
    | _over_windows("terminal_fraud_risk_{}d", "double precision"),
)


@dataclass(frozen=True)
class Schema:
    """A schema of the feature store's database."""

    database: DatabaseSettings
    name: str


@dataclass(frozen=True)
class Comparison:
    """What a comparison with a table found; `examples` tell of the first few differing rows."""

    table: str
    rows: int
    missing: int
    surplus: int
    different: int
    examples: list[str]

    @property
    def mismatches(self) -> int:
        """The number of rows that are not the same on both sides."""
        return self.missing + self.surplus + self.different


def write_parquet(rows: DataFrame, table: FeatureTable, folder: str, asked: Span | None, built: Span) -> None:
    """Replace the days asked for (None: all) below `folder/TABLE` by the rows, which are of the days built.

    Days asked for and not built have no rows now; what an earlier run wrote for them goes.
    """
    path = f"{folder.rstrip('/')}/{table.name}"
    (
        rows.withColumn("event_date", F.to_date("event_timestamp"))
        .repartition("event_date")
        .sortWithinPartitions("event_date", table.entity)
        .write.mode("overwrite")
        .option("partitionOverwriteMode", "dynamic" if asked else "static")
        .partitionBy("event_date")
        .parquet(path)
    )
    if asked is None:
        return
    for name in list_names(rows.sparkSession, path):
        if (match := DAY_FOLDER.fullmatch(name)) is None:
            continue
        day = day_number(date.fromisoformat(match[1]))
        if asked.first <= day <= asked.last and not built.first <= day <= built.last:
            remove(rows.sparkSession, f"{path}/{name}")


def write_postgresql(rows: DataFrame, table: FeatureTable, place: Schema, asked: Span | None) -> None:
    """Replace the rows of the days asked for (None: all) in the table, created if need be.

    Readers see the old rows or the new ones.

    TableError where another run holds the table, or its columns are not the ones that are written.
    """
    incoming = sql.Identifier(place.name, f"{table.name}__incoming")
    with (
        connect(place.database, application_name="build_daily_windows") as connection,
        _alone(connection, f"{place.name}.{table.name}"),
    ):
        _create(connection, table, place.name)
        connection.execute(sql.SQL("drop table if exists {}").format(incoming))
        connection.execute(
            sql.SQL("create unlogged table {} as select {} from {} with no data").format(
                incoming, _column_list(table), sql.Identifier(place.name, table.name)
            )
        )
        options = {
            **jdbc_options(place.database),
            "dbtable": f'"{place.name}"."{table.name}__incoming"',
            "batchsize": "10000",
        }
        rows.write.format("jdbc").options(**options).mode("append").save()
        _replace(connection, sql.Identifier(place.name, table.name), incoming, table, asked)


def _replace(
    connection: Connection,
    target: sql.Identifier,
    incoming: sql.Identifier,
    table: FeatureTable,
    span: Span | None,
) -> None:
    """Put the incoming rows in the place of the span's (None: of all), in one transaction."""
    columns = _column_list(table)
    with connection.transaction():
        if span is None:
            connection.execute(sql.SQL("truncate {}").format(target))
        else:
            connection.execute(
                sql.SQL(
                    "delete from {} where event_timestamp >= %s::date::timestamp at time zone 'UTC'"
                    " and event_timestamp < %s::date::timestamp at time zone 'UTC'"
                ).format(target),
                (date_of(span.first), date_of(span.last + 1)),
            )
        connection.execute(
            sql.SQL("insert into {} ({}) select {} from {}").format(target, columns, columns, incoming)
        )
        connection.execute(sql.SQL("drop table {}").format(incoming))
    connection.execute(sql.SQL("analyze {}").format(target))


def _column_list(table: FeatureTable) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, table.columns))


@contextmanager
def _alone(connection: Connection, name: str) -> Iterator[None]:
    """Keep other runs of this job off the table while the block runs."""
    connection.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(f"{LOCK_WAIT_SECONDS}s")))
    key = f"build_daily_windows.{name}"
    try:
        connection.execute("select pg_advisory_lock(hashtextextended(%s, 0))", (key,))
    except psycopg.errors.LockNotAvailable:
        raise TableError(f"another run still writes {name} after {LOCK_WAIT_SECONDS} s: try again") from None
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute("select pg_advisory_unlock(hashtextextended(%s, 0))", (key,))


def _create(connection: Connection, table: FeatureTable, schema: str) -> None:
    """Create the table where there is none; TableError where there is another."""
    target, qualified = sql.Identifier(schema, table.name), f'"{schema}"."{table.name}"'
    columns = sql.SQL(", ").join(
        sql.SQL("{} {} not null").format(sql.Identifier(name), sql.SQL(kind))
        for name, kind in table.columns.items()
    )
    with connection.transaction():
        connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))
        if connection.execute("select to_regclass(%s)", (qualified,)).fetchone() == (None,):
            connection.execute(sql.SQL("create table {} ({})").format(target, columns))
            connection.execute(
                sql.SQL("create unique index on {} ({}, event_timestamp)").format(
                    target, sql.Identifier(table.entity)
                )
            )
    found = connection.execute(
        "select attname, format_type(atttypid, null) from pg_attribute"
        " where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped",
        (qualified,),
    ).fetchall()
    wanted = {
        name: "timestamp with time zone" if kind == "timestamptz" else kind
        for name, kind in table.columns.items()
    }
    if odd := sorted(set(dict(found).items()) ^ set(wanted.items())):
        raise TableError(f"{schema}.{table.name} is another table: see its column {odd[0][0]}")


def read_table(
    spark: SparkSession, table: FeatureTable, place: Schema, span: Span, *, strides: Span
) -> DataFrame:
    """Return the span's rows of a table in PostgreSQL, read by connections that share the strides' days."""
    first, end = date_of(span.first), date_of(span.last + 1)
    columns = ", ".join(table.columns)
    query = (
        f"(select {columns} from {place.name}.{table.name}"  # noqa: S608
        f" where event_timestamp >= '{first} 00:00:00+00' and event_timestamp < '{end} 00:00:00+00') as span"
    )
    parts = min(spark.sparkContext.defaultParallelism * READS_A_CORE, strides.last - strides.first + 1)
    options = {
        **jdbc_options(place.database),
        "dbtable": query,
        "partitionColumn": "event_timestamp",
        "lowerBound": f"{date_of(strides.first)} 00:00:00",
        "upperBound": f"{date_of(strides.last + 1)} 00:00:00",
        "numPartitions": str(parts),
        "fetchsize": str(FETCH_ROWS),
    }
    return spark.read.format("jdbc").options(**options).load()


def compare(computed: DataFrame, found: DataFrame, table: FeatureTable) -> Comparison:
    """Compare what was computed with a table's rows, value by value and without tolerance."""
    key = [table.entity, "event_timestamp"]
    values = [name for name in table.columns if name not in key]
    sides = [
        side.select(*key, F.struct(*(F.col(name) for name in values)).alias(label))
        for side, label in ((computed, "computed"), (found, "found"))
    ]
    both = sides[0].join(sides[1], key, "full")
    same = F.col("computed").eqNullSafe(F.col("found"))
    verdict = (
        F.when(F.col("found").isNull(), "missing")
        .when(F.col("computed").isNull(), "surplus")
        .when(~same, "different")
        .otherwise("same")
    )
    judged = both.withColumn("verdict", verdict).persist()
    try:
        counts = {row[0]: row[1] for row in judged.groupBy("verdict").count().collect()}
        odd = judged.where("verdict <> 'same'").orderBy(*key).limit(SHOWN_EXAMPLES).collect()
    finally:
        judged.unpersist()
    examples = [
        f"{row['verdict']}: {table.entity} {row[table.entity]}, {row['event_timestamp']:%Y-%m-%d}: "
        + _difference(row["computed"], row["found"])
        for row in odd
    ]
    return Comparison(
        table.name,
        sum(counts.values()),
        counts.get("missing", 0),
        counts.get("surplus", 0),
        counts.get("different", 0),
        examples,
    )


def _difference(computed: Row | None, found: Row | None) -> str:
    if computed is None or found is None:
        return "computed, not in the table" if found is None else "in the table, not computed"
    return "; ".join(
        f"{name} {computed[name]!r} computed, {found[name]!r} in the table"
        for name in computed.asDict()
        if computed[name] != found[name]
    )
