"""Where the windows' raw rows come from: PostgreSQL's raw tables, or the Parquet files of a landing folder.

Both give the same data frames (see `daily_windows.RawFrames`). PostgreSQL is read in parallel by day, all
parts in one snapshot. A landing folder, on any file system that Spark reads, is checked as the loader checks
it: what is not what it must be is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Protocol

from psycopg import sql
from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 (its name everywhere)
from pyspark.sql.types import (
    DoubleType,
    LongType,
    ShortType,
    StructField,
    StructType,
    TimestampType,
)

from data_source_connectors.database_connector import Connection, DatabaseSettings, connect
from data_transformation_pipelines.python_scripts_feast.landing_files import Kind, day_of, file_name

EPOCH = date(1970, 1, 1)
FETCH_ROWS = 20_000
READS_A_CORE = 4
KINDS: tuple[Kind, ...] = ("transactions", "labels")

TRANSACTION_FIELDS = StructType(
    [
        StructField("transaction_id", LongType()),
        StructField("tx_datetime", TimestampType()),
        StructField("customer_id", LongType()),
        StructField("terminal_id", LongType()),
        StructField("tx_amount", DoubleType()),
    ]
)
LABEL_FIELDS = StructType(
    [
        StructField("transaction_id", LongType()),
        StructField("is_fraud", ShortType()),
        StructField("fraud_scenario", ShortType()),
    ]
)


class SourceError(Exception):
    """The raw rows can't be used; the message says which and why."""


def day_number(day: date) -> int:
    """Return a date as days since 1970-01-01.

    >>> day_number(date(1970, 1, 31))
    30
    """
    return (day - EPOCH).days


def date_of(day: int) -> date:
    """Return the date of a number of days since 1970-01-01."""
    return EPOCH + timedelta(days=day)


class RawSource(Protocol):
    """Raw transactions with their labels."""

    def days(self) -> tuple[int, int]:
        """Return the first and the last day that has a transaction; SourceError where none has."""

    def transactions(self, first: int, last: int) -> DataFrame:
        """Return the transactions of the days from first to last with their labels, read once and kept."""

    def first_days(self, entity: str) -> DataFrame:
        """Return the day of each entity's first transaction ever, as `first_day`."""


def cents() -> F.Column:
    """Return the amount in whole cents, rounded as PostgreSQL rounds a double to a bigint: half to even."""
    return F.rint(F.col("tx_amount") * 100).cast("long").alias("tx_amount_cents")


@dataclass(frozen=True)
class PostgresqlSource:
    """The raw tables, seen in one snapshot by all readers."""

    spark: SparkSession
    database: DatabaseSettings
    schema: str
    snapshot: str
    bounds: tuple[int, int] | None

    @classmethod
    @contextmanager
    def open(cls, spark: SparkSession, database: DatabaseSettings, schema: str) -> Iterator[PostgresqlSource]:
        """Yield the source; the snapshot lasts as long as the block."""
        with (
            connect(database, application_name="build_daily_windows") as connection,
            connection.transaction(),
        ):
            connection.execute("set transaction isolation level repeatable read, read only")
            yield cls(spark, database, schema, _exported_snapshot(connection), _bounds(connection, schema))

    def days(self) -> tuple[int, int]:
        """Return the first and the last day that has a transaction."""
        if self.bounds is None:
            raise SourceError(f"{self.schema}.transactions is empty: load transactions first")
        return self.bounds

    def transactions(self, first: int, last: int) -> DataFrame:
        """Return the transactions of the days from first to last with their labels."""
        transactions = self._read(
            "transactions",
            "transaction_id, tx_date, customer_id, terminal_id, tx_amount, known_at",
            first,
            last,
        ).select(
            "transaction_id",
            F.unix_date("tx_date").alias("tx_day"),
            "customer_id",
            "terminal_id",
            cents(),
            F.unix_micros("known_at").alias("known_us"),
        )
        labels = self._read(
            "transaction_labels", "transaction_id, tx_date, is_fraud, known_at", first, last
        ).select("transaction_id", "is_fraud", F.unix_micros("known_at").alias("label_known_us"))
        return transactions.join(labels, "transaction_id", "left").persist()

    def first_days(self, entity: str) -> DataFrame:
        """Return the day of each entity's first transaction ever, as `first_day`."""
        query = f"select {entity}, min(tx_date) as first_date from {self.schema}.transactions group by 1"  # noqa: S608
        rows = self.spark.read.format("jdbc").options(**self._options(), query=query).load()
        return rows.select(entity, F.unix_date("first_date").alias("first_day"))

    def _read(self, table: str, columns: str, first: int, last: int) -> DataFrame:
        """Return a table's rows of the days, read by several connections, each a range of days."""
        first_date, end_date = date_of(first), date_of(last + 1)
        query = (
            f"(select {columns} from {self.schema}.{table}"  # noqa: S608
            f" where tx_date >= date '{first_date}' and tx_date < date '{end_date}') as days"
        )
        parts = min(self.spark.sparkContext.defaultParallelism * READS_A_CORE, last - first + 1)
        options = {
            **self._options(),
            "dbtable": query,
            "partitionColumn": "tx_date",
            "lowerBound": str(first_date),
            "upperBound": str(end_date),
            "numPartitions": str(parts),
            "fetchsize": str(FETCH_ROWS),
        }
        return self.spark.read.format("jdbc").options(**options).load()

    def _options(self) -> dict[str, str]:
        # The statement runs first in the transaction in which Spark then reads.
        statement = (
            f"set transaction isolation level repeatable read; set transaction snapshot '{self.snapshot}'"
        )
        return {
            **jdbc_options(self.database),
            "sessionInitStatement": statement,
            "fetchsize": str(FETCH_ROWS),
        }


def jdbc_options(database: DatabaseSettings) -> dict[str, str]:
    """Return the options of Spark's JDBC source and sink for the feature store's database."""
    return {
        "url": f"jdbc:postgresql://{database.host}:{database.port}/{database.name}",
        "driver": "org.postgresql.Driver",
        "user": database.user,
        "password": database.password.get_secret_value(),
        "sslmode": database.sslmode,
        "connectTimeout": str(database.connect_timeout_seconds),
        "tcpKeepAlive": "true",
        "reWriteBatchedInserts": "true",
        "ApplicationName": "spark",
    }


def _exported_snapshot(connection: Connection) -> str:
    row = connection.execute("select pg_export_snapshot()").fetchone()
    assert row is not None
    return str(row[0])


def _bounds(connection: Connection, schema: str) -> tuple[int, int] | None:
    query = sql.SQL("select min(tx_date), max(tx_date) from {}").format(
        sql.Identifier(schema, "transactions")
    )
    row = connection.execute(query).fetchone()
    return None if row is None or row[0] is None else (day_number(row[0]), day_number(row[1]))


class LandingSource:
    """The day files of a landing folder: a path, or an address of a file system that Spark knows (`s3a://...`)."""

    def __init__(self, spark: SparkSession, folder: str, label_delay_days: int) -> None:
        self.spark = spark
        self.folder = folder.rstrip("/")
        self.label_delay_days = label_delay_days
        landed = {name for name in list_names(spark, folder) if day_of(name)}
        self.files: dict[Kind, list[int]] = {
            kind: sorted(
                day_number(day) for name in landed if name.startswith(kind) and (day := day_of(name))
            )
            for kind in KINDS
        }
        if not self.files["transactions"]:
            raise SourceError(f"{folder} holds no transactions_YYYY-MM-DD.parquet")
        if lonely := sorted(set(self.files["transactions"]) ^ set(self.files["labels"])):
            raise SourceError(f"{folder}: {date_of(lonely[0])} has transactions or labels, not both")

    def days(self) -> tuple[int, int]:
        """Return the first and the last day that has a transaction."""
        bounds = self._read("transactions").agg(F.min("tx_datetime"), F.max("tx_datetime")).first()
        if bounds is None or bounds[0] is None:
            raise SourceError(f"{self.folder} holds no transaction")
        return day_number(bounds[0].date()), day_number(bounds[1].date())

    def transactions(self, first: int, last: int) -> DataFrame:
        """Return the transactions of the days from first to last with their labels."""
        file_day = F.regexp_extract(F.input_file_name(), r"(\d{4}-\d{2}-\d{2})\.parquet$", 1)
        transactions = self._read("transactions", first, last).withColumn("file_date", file_day.cast("date"))
        labels = self._read("labels", first, last)
        joined = transactions.join(labels, "transaction_id", "full").persist()
        try:
            self._refuse_broken(joined)
        except BaseException:
            joined.unpersist()
            raise
        known_us = F.unix_micros("tx_datetime")
        delay_us = self.label_delay_days * 86_400_000_000
        return joined.select(
            "transaction_id",
            F.unix_date(F.to_date("tx_datetime")).alias("tx_day"),
            "customer_id",
            "terminal_id",
            cents(),
            known_us.alias("known_us"),
            "is_fraud",
            (known_us + delay_us).alias("label_known_us"),
        )

    def first_days(self, entity: str) -> DataFrame:
        """Return the day of each entity's first transaction ever, as `first_day`."""
        first = F.unix_date(F.to_date(F.min("tx_datetime"))).alias("first_day")
        return self._read("transactions").groupBy(entity).agg(first)

    def _read(self, kind: Kind, first: int | None = None, last: int | None = None) -> DataFrame:
        days = [
            day
            for day in self.files[kind]
            if (first is None or day >= first) and (last is None or day <= last)
        ]
        fields = TRANSACTION_FIELDS if kind == "transactions" else LABEL_FIELDS
        paths = [f"{self.folder}/{file_name(kind, date_of(day))}" for day in days]
        return self.spark.read.schema(fields).parquet(*paths)

    def _refuse_broken(self, joined: DataFrame) -> None:
        amount = F.col("tx_amount")
        reasons = {
            "its label belongs to no transaction": F.col("tx_datetime").isNull(),
            "a value is missing": F.col("customer_id").isNull()
            | F.col("terminal_id").isNull()
            | amount.isNull(),
            "it has no label": F.col("is_fraud").isNull(),
            "it is not on its file's day": F.to_date("tx_datetime") != F.col("file_date"),
            "its amount is negative or not finite": (amount < 0) | F.isnan(amount) | (amount == float("inf")),
            "is_fraud is neither 0 nor 1": ~F.col("is_fraud").isin(0, 1),
        }
        broken = F.coalesce(*(F.when(condition, F.lit(reason)) for reason, condition in reasons.items()))
        found = joined.select("transaction_id", broken.alias("reason")).where("reason is not null").first()
        if found is not None:
            raise SourceError(f"{self.folder}: transaction {found['transaction_id']}: {found['reason']}")
        repeated = joined.groupBy("transaction_id").count().where("count > 1").first()
        if repeated is not None:
            raise SourceError(f"{self.folder}: transaction {repeated['transaction_id']} comes more than once")


def list_names(spark: SparkSession, folder: str) -> list[str]:
    """Return the names in a folder, on any file system that Spark knows, or raise SourceError."""
    file_system, path = _file_system(spark, folder)
    try:
        return [status.getPath().getName() for status in file_system.listStatus(path)]
    except Py4JJavaError as error:
        raise SourceError(f"{folder} can't be read: {_reason(error)}") from None


def remove(spark: SparkSession, folder: str) -> None:
    """Remove a folder and what is in it."""
    file_system, path = _file_system(spark, folder)
    file_system.delete(path, True)


def _file_system(spark: SparkSession, folder: str) -> tuple[Any, Any]:
    """Return Hadoop's file system of a path and the path; PySpark has no other way to them."""
    jvm: Any = spark.sparkContext._jvm
    try:
        path = jvm.org.apache.hadoop.fs.Path(folder)
        return path.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration()), path
    except Py4JJavaError as error:
        raise SourceError(f"{folder} can't be read: {_reason(error)}") from None


def _reason(error: Py4JJavaError) -> str:
    return " ".join(str(error.java_exception).split())
