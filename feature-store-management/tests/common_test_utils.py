"""What the tests of contracts, models and views share: paths, a rehearsal of the feature store, an oracle.

The oracle computes every feature from the raw rows by filtering them, one entity and one moment at a time:
slow, and without a thing in common with the SQL.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from importlib import resources
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import psycopg
import pytest
import redis
from psycopg import sql

ROOT_DIR = Path(__file__).resolve().parents[1]
CONTRACTS_DIR = ROOT_DIR / "contracts"
DBT_DIR = ROOT_DIR / "data_transformation_pipelines" / "dbt_project_feast"

WINDOWS = (1, 7, 30)
FRAUD_DELAY_DAYS = 7
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
SCHEMAS = ("raw", "staging", "intermediate", "features", "labels", "feast", "quality", "stream")
DAY_TABLES = (
    "features.fct_customer_daily",
    "features.fct_terminal_daily",
    "features.fct_customer_today",
    "features.fct_terminal_today",
    "labels.fct_fraud_labels",
)
REQUIRED = [
    "FEATURE_STORE_DB_HOST",
    "FEATURE_STORE_DB_PORT",
    "FEATURE_STORE_DB_NAME",
    "FEATURE_STORE_DB_USER",
    "FEATURE_STORE_DB_PASSWORD",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_PASSWORD",
]

Row = dict[str, Any]


def require_stack() -> None:
    """Fail, naming the variables, where the environment of a running stack is not loaded."""
    if missing := [name for name in REQUIRED if not os.environ.get(name)]:
        pytest.fail(f"load the environment of a running stack first; not set: {', '.join(missing)}")


@dataclass(frozen=True)
class Transaction:
    """One raw transaction with its label; `is_fraud` None is a transaction whose label never came."""

    transaction_id: int
    moment: pd.Timestamp
    customer_id: int
    terminal_id: int
    cents: int
    is_fraud: int | None
    known_at: pd.Timestamp
    label_known_at: pd.Timestamp

    @property
    def arrival(self) -> pd.Timestamp:
        """When the transaction became known: never before it happened."""
        return max(self.known_at, self.moment)

    @property
    def day(self) -> pd.Timestamp:
        """Midnight of the transaction's day."""
        return self.moment.normalize()


def transaction(  # noqa: PLR0917 (a row of a table)
    transaction_id: int,
    moment: str | pd.Timestamp,
    customer_id: int,
    terminal_id: int,
    cents: int,
    is_fraud: int | None = 0,
    known_at: str | pd.Timestamp | None = None,
) -> Transaction:
    """Return a transaction known at once, whose label is known a delay later."""
    when = pd.Timestamp(moment, tz="UTC") if isinstance(moment, str) else moment
    known = when if known_at is None else pd.Timestamp(known_at, tz="UTC")
    return Transaction(
        transaction_id, when, customer_id, terminal_id, cents, is_fraud, known, when + FRAUD_DELAY_DAYS * DAY
    )


def connect_database() -> psycopg.Connection[Any]:
    """Return a connection to the running stack's feature store, in autocommit mode."""
    return psycopg.connect(
        host=os.environ["FEATURE_STORE_DB_HOST"],
        port=os.environ["FEATURE_STORE_DB_PORT"],
        dbname=os.environ["FEATURE_STORE_DB_NAME"],
        user=os.environ["FEATURE_STORE_DB_USER"],
        password=os.environ["FEATURE_STORE_DB_PASSWORD"],
        connect_timeout=10,
        autocommit=True,
    )


def connect_redis(seconds: float) -> redis.Redis:
    """Return a client of the running stack's online store that waits so long for a reply."""
    return redis.Redis(
        host=os.environ["REDIS_HOST"],
        port=int(os.environ["REDIS_PORT"]),
        password=os.environ["REDIS_PASSWORD"],
        socket_timeout=seconds,
    )


class Rehearsal:
    """A feature store of the test's own in the running stack: schemas with a prefix, keys with a project."""

    def __init__(self, folder: Path) -> None:
        require_stack()
        self.prefix = f"test_{uuid4().hex[:8]}_"
        self.project = f"{self.prefix}project"
        self.folder = folder
        self.connection = connect_database()
        self.redis = connect_redis(10)
        text = (ROOT_DIR / "feast_repository" / "feature_store.yaml").read_text()
        self.feature_store_yaml = folder / "feature_store.yaml"
        self.feature_store_yaml.write_text(
            text.replace("project: mlops_platform", f"project: {self.project}")
            .replace("search_path=feast", f"search_path={self.prefix}feast")
            .replace("db_schema: feast ", f"db_schema: {self.prefix}feast ")
        )
        raw = resources.files("data_transformation_pipelines.python_scripts_feast").joinpath("raw_schema.sql")
        with self.connection.transaction():
            self.connection.execute(self._sql("create schema {}", "raw"))
            self.connection.execute(self._sql("set local search_path to {}", "raw"))
            self.connection.execute(raw.read_bytes())

    def _sql(self, template: str, schema: str) -> sql.Composed:
        return sql.SQL(template).format(sql.Identifier(self.prefix + schema))

    def table(self, name: str) -> str:
        """Return the rehearsal's name of `schema.table`."""
        return self.prefix + name

    def close(self) -> None:
        """Drop every schema and key of the rehearsal."""
        for schema in SCHEMAS:
            self.connection.execute(self._sql("drop schema if exists {} cascade", schema))
        self.connection.close()
        keys = [key for key in self.redis.scan_iter(count=10_000) if key.endswith(self.project.encode())]
        if keys:
            self.redis.delete(*keys)
        self.redis.close()

    def load(self, transactions: Iterable[Transaction]) -> None:
        """Replace the raw transactions and labels of the days that the transactions fall on."""
        rows = list(transactions)
        with self.connection.transaction():
            self.remove_days({row.day.date() for row in rows})
            with self.connection.cursor() as cursor:
                with cursor.copy(f"copy {self.table('raw.transactions')} from stdin") as copy:
                    for row in rows:
                        copy.write_row(
                            (row.transaction_id, row.moment, row.day.date(), row.customer_id, row.terminal_id,
                             row.cents / 100, row.known_at)
                        )  # fmt: skip
                with cursor.copy(f"copy {self.table('raw.transaction_labels')} from stdin") as copy:
                    for row in rows:
                        if row.is_fraud is not None:
                            copy.write_row(
                                (
                                    row.transaction_id,
                                    row.day.date(),
                                    row.is_fraud,
                                    row.is_fraud,
                                    row.label_known_at,
                                )
                            )

    def remove_days(self, days: Iterable[date]) -> None:
        """Remove the raw rows of days."""
        for table in ("raw.transactions", "raw.transaction_labels"):
            self.connection.execute(f"delete from {self.table(table)} where tx_date = any(%s)", [list(days)])

    def load_subscribers(self, rows: list[Row]) -> None:
        """Insert subscribers and their labels; a row holds the columns of both."""
        for row in rows:
            for table, columns in (
                ("raw.subscribers", [c for c in row if c not in ("churned", "event_timestamp")]),
                ("raw.subscriber_labels", ["subscriber_id", "churned", "event_timestamp", "known_at"]),
            ):
                statement = sql.SQL("insert into {} ({}) values ({})").format(
                    sql.Identifier(*self.table(table).split(".")),
                    sql.SQL(", ").join(map(sql.Identifier, columns)),
                    sql.SQL(", ").join(sql.Placeholder() * len(columns)),
                )
                self.connection.execute(statement, [row[column] for column in columns])

    def environment(self) -> dict[str, str]:
        """Return the environment in which the scripts work on the rehearsal."""
        return {
            **os.environ,
            "FEATURE_STORE_SCHEMA_PREFIX": self.prefix,
            "FEAST_FS_YAML_FILE_PATH": str(self.feature_store_yaml),
            "DBT_TARGET_PATH": str(self.folder / "target"),
            "DBT_LOG_PATH": str(self.folder / "logs"),
            "VENV": sys.prefix,
        }

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the root's scripts on the rehearsal."""
        return subprocess.run(
            [str(ROOT_DIR / "scripts" / script), *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def succeed(self, script: str, *arguments: str) -> str:
        """Run a script that must succeed; return what it printed."""
        done = self.run(script, *arguments)
        assert done.returncode == 0, (
            f"{script} {' '.join(arguments)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout

    def rows(self, name: str) -> list[Row]:
        """Return all rows of `schema.table`."""
        with self.connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return cursor.execute(f"select * from {self.table(name)}").fetchall()  # type: ignore[arg-type]

    def checksums(self) -> dict[str, tuple[int, int]]:
        """Return the number of rows and a hash over all of them, for every table that is built by day."""
        statement = "select count(*), coalesce(bit_xor(hash_record_extended(t, 0)), 0) from {} as t"
        return {
            name: self.connection.execute(statement.format(self.table(name))).fetchone()  # type: ignore[misc]
            for name in DAY_TABLES
        }


# The oracle.


def window(rows: Iterable[Transaction], end: pd.Timestamp, days: int) -> list[Transaction]:
    """Return the transactions of the full days [end - days, end); `end` is a midnight."""
    return [row for row in rows if end - days * DAY <= row.moment < end]


def full_day_totals(rows: Iterable[Transaction], midnight: pd.Timestamp, entity: str) -> Row:
    """Return what the daily view must hold of one entity's transactions as of a midnight."""
    rows = list(rows)
    values: Row = {}
    known_from: list[pd.Timestamp] = [midnight]
    for days in WINDOWS:
        inside = window(rows, midnight, days)
        values[f"{entity}_tx_count_full_{days}d"] = len(inside)
        known_from += [row.known_at + MICROSECOND for row in inside]
        if entity == "customer":
            values[f"customer_tx_amount_sum_full_{days}d"] = sum(row.cents for row in inside) / 100
            continue
        matured = window(rows, midnight - FRAUD_DELAY_DAYS * DAY, days)
        labelled = [row for row in matured if row.is_fraud is not None]
        frauds = sum(row.is_fraud or 0 for row in labelled)
        values[f"terminal_labelled_tx_count_{days}d"] = len(labelled)
        values[f"terminal_fraud_risk_{days}d"] = frauds / len(labelled) if labelled else 0.0
        known_from += [max(row.known_at, row.label_known_at) + MICROSECOND for row in labelled]
    return {"event_timestamp": midnight, "created_timestamp": max(known_from), **values}


def expected_daily(rows: list[Transaction], entity: str) -> dict[tuple[int, pd.Timestamp], Row]:
    """Return the daily table: every entity, every day from its second to the one after the last loaded."""
    last = max(row.day for row in rows) + DAY
    expected = {}
    for key, own in by_entity(rows, entity).items():
        midnight = min(row.day for row in own) + DAY
        while midnight <= last:
            expected[key, midnight] = {f"{entity}_id": key, **full_day_totals(own, midnight, entity)}
            midnight += DAY
    return expected


def expected_today(rows: list[Transaction], entity: str) -> dict[tuple[int, pd.Timestamp, pd.Timestamp], Row]:
    """Return the running totals: every entity, every moment at which a transaction of it became known."""
    expected = {}
    for key, own in by_entity(rows, entity).items():
        for day, arrival in {(row.day, row.arrival) for row in own}:
            so_far = [row for row in own if row.day == day and row.arrival <= arrival]
            true_from = max(row.moment for row in so_far) + MICROSECOND
            known_from = max(true_from, arrival + MICROSECOND)
            row = {
                f"{entity}_id": key,
                "event_timestamp": true_from,
                "created_timestamp": known_from,
                f"{entity}_tx_count_today": len(so_far),
                f"{entity}_today_day": (day - pd.Timestamp(0, tz="UTC")) // DAY,
            }
            if entity == "customer":
                row["customer_tx_amount_sum_today"] = sum(row.cents for row in so_far) / 100
            expected[key, true_from, known_from] = row
    return expected


def by_entity(rows: Iterable[Transaction], entity: str) -> dict[int, list[Transaction]]:
    """Return the transactions of each customer or terminal."""
    groups: dict[int, list[Transaction]] = {}
    for row in rows:
        groups.setdefault(getattr(row, f"{entity}_id"), []).append(row)
    return groups


def expected_vector(rows: list[Transaction], scored: Transaction) -> dict[str, float]:
    """Return the fraud vector of a transaction from what was known strictly before it.

    The mean is the contract's: the full days' sum, today's and the amount, added as doubles in this order.
    Full days count with all their rows: a window into which a row came late is not what this computes.
    """
    moment, midnight = scored.moment, scored.moment.normalize()
    customers = [row for row in rows if row.customer_id == scored.customer_id]
    terminals = [row for row in rows if row.terminal_id == scored.terminal_id]
    vector = {
        "tx_amount": scored.cents / 100,
        "tx_is_weekend": float(moment.weekday() >= 5),
        "tx_is_night": float(moment.hour <= 6),
    }
    for days in WINDOWS:
        full = [row.cents for row in window(customers, midnight, days)]
        today = [row.cents for row in customers if midnight <= row.moment and row.arrival < moment]
        count = len(full) + len(today) + 1
        dollars = sum(full) / 100 + sum(today) / 100 + scored.cents / 100
        vector[f"customer_tx_count_{days}d"] = count
        vector[f"customer_tx_amount_mean_{days}d"] = dollars / count
        at_terminal = window(terminals, midnight, days)
        at_terminal += [row for row in terminals if midnight <= row.moment and row.arrival < moment]
        vector[f"terminal_tx_count_{days}d"] = len(at_terminal) + 1
        daily = full_day_totals(terminals, midnight, "terminal")
        for name in (f"terminal_labelled_tx_count_{days}d", f"terminal_fraud_risk_{days}d"):
            vector[name] = daily[name]
    return vector


def assert_same_rows(actual: list[Row], expected: Mapping[tuple[Any, ...], Row], *key: str) -> None:
    """Compare a table with the oracle's, row by row and value by value, without tolerance.

    `key` names the columns that the oracle's keys hold, in order.
    """
    found = {tuple(row[column] for column in key): row for row in actual}
    assert len(found) == len(actual), f"{key} is no key"
    missing, surplus = expected.keys() - found.keys(), found.keys() - expected.keys()
    assert not missing, f"missing {sorted(missing)[:3]}"
    assert not surplus, f"too many {sorted(surplus)[:3]}"
    for where, row in expected.items():
        assert found[where] == row, where
