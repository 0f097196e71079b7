"""The data that notebooks look at: read from the feature store, sampled where it is large, kept nowhere.

Everything is as of one moment, the midnight (UTC) after the last loaded day; a label counts from its
`label_known_at` on, here as in training. Errors are SourceError and SettingsError.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, LiteralString

import pandas as pd
import pyarrow as pa
import yaml
from psycopg import sql
from pydantic_settings import BaseSettings

from data_source_connectors.database_connector import DatabaseSettings, read_query_batches
from data_source_connectors.settings import read_settings

ROOT_DIR = Path(__file__).resolve().parents[2]
MAX_ROWS = 200_000
# A sample keeps whole customers or whole terminals, by a hash of their id, so that histories stay whole.
SAMPLE_STEPS = 1000

Entity = Literal["customer_id", "terminal_id"]


class NoDataError(Exception):
    """The feature store holds no transactions yet."""


class SchemaSettings(BaseSettings):
    """What goes before the schemas' names: environment variable `FEATURE_STORE_SCHEMA_PREFIX`."""

    feature_store_schema_prefix: str = ""


@dataclass(frozen=True)
class Dataset:
    """What is loaded, and the moment as of which it is looked at; days are midnights (UTC)."""

    transactions: int
    first_day: pd.Timestamp
    last_day: pd.Timestamp
    max_rows: int = MAX_ROWS

    @property
    def as_of(self) -> pd.Timestamp:
        """The midnight that ends the last loaded day."""
        return self.last_day + timedelta(days=1)

    @property
    def share(self) -> float:
        """The share of customers, or of terminals, that a sample holds."""
        return min(1.0, self.max_rows / self.transactions)


def read_frame(query: sql.Composed) -> pd.DataFrame:
    """Return the rows of a query; dates become midnights (UTC)."""
    batches = read_query_batches(read_settings(DatabaseSettings), query)
    table = pa.Table.from_batches(batches)
    for number, column in enumerate(table.schema):
        if pa.types.is_date(column.type):
            midnights = table.column(number).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
            table = table.set_column(number, column.name, midnights)
    return table.to_pandas()


def _query(text: LiteralString, **values: sql.Composable) -> sql.Composed:
    prefix = read_settings(SchemaSettings).feature_store_schema_prefix
    tables = {
        name: sql.Identifier(f"{prefix}{schema}", name)
        for schema, name in (
            ("raw", "transactions"),
            ("labels", "fct_fraud_labels"),
            ("labels", "label_maturity"),
        )
    }
    return sql.SQL(text).format(**tables, **values)


def dataset(max_rows: int = MAX_ROWS) -> Dataset:
    """Return what is loaded; raises NoDataError where nothing is."""
    [row] = read_frame(
        _query("select count(*) as rows, min(tx_date) as first, max(tx_date) as last from {transactions}")
    ).to_dict("records")
    if not row["rows"]:
        raise NoDataError("raw.transactions is empty: load transactions first (README)")
    return Dataset(row["rows"], row["first"], row["last"], max_rows)


def _of_sample(data: Dataset, sampled_by: Entity) -> sql.Composed:
    return sql.SQL("abs(hashint8({})::bigint) % {} < {}").format(
        sql.Identifier(sampled_by),
        sql.Literal(SAMPLE_STEPS),
        sql.Literal(max(1, round(data.share * SAMPLE_STEPS))),
    )


def transactions(data: Dataset, *, sampled_by: Entity = "customer_id") -> pd.DataFrame:
    """Return transactions in order of time, of a sample of customers or terminals where there are many."""
    return read_frame(
        _query(
            "select transaction_id, tx_datetime, tx_date, customer_id, terminal_id, tx_amount, known_at"
            " from {transactions} where {chosen} order by tx_datetime, transaction_id",
            chosen=_of_sample(data, sampled_by),
        )
    )


def labelled_transactions(data: Dataset, *, sampled_by: Entity = "customer_id") -> pd.DataFrame:
    """Return the transactions whose label is known as of the data set's moment, with it, in order of time."""
    return read_frame(
        _query(
            "select transaction_id, event_timestamp as tx_datetime, tx_date, customer_id, terminal_id,"
            " tx_amount, is_fraud, label_known_at from {fct_fraud_labels}"
            " where {chosen} and label_known_at <= {as_of} order by event_timestamp, transaction_id",
            chosen=_of_sample(data, sampled_by),
            as_of=sql.Literal(data.as_of.to_pydatetime()),
        )
    )


def daily_totals(data: Dataset) -> pd.DataFrame:
    """Return one row a day: transactions, their amount, labels known as of the moment, frauds among those."""
    return read_frame(
        _query(
            "select t.tx_date, count(*) as transactions, sum(t.tx_amount) as amount,"
            " count(l.transaction_id) as labelled, count(*) filter (where l.is_fraud = 1) as frauds"
            " from {transactions} t left join {fct_fraud_labels} l"
            " on l.transaction_id = t.transaction_id and l.label_known_at <= {as_of}"
            " group by t.tx_date order by t.tx_date",
            as_of=sql.Literal(data.as_of.to_pydatetime()),
        )
    )


def label_delay_days() -> int:
    """Return after how many days the label of a transaction is known."""
    [row] = read_frame(_query("select delay_days from {label_maturity} where label_name = 'fraud'")).to_dict(
        "records"
    )
    return int(row["delay_days"])


def fraud_vectors(data: Dataset, days: int = 14) -> pd.DataFrame:
    """Return the vectors of `fraud_detection_v1` with `is_fraud`, of the last days whose labels are known.

    They come from the training set builder, as of each transaction; nothing of it stays on disk.
    """
    last = data.last_day - timedelta(days=label_delay_days())
    first = last - timedelta(days=days - 1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "vectors.parquet"
        command = [sys.executable, "-m", "training_sets.build", "--service", "fraud_detection_v1"]
        command += ["--labels", "fraud", "--from", f"{first:%F}", "--to", f"{last:%F}"]
        command += ["--known-as-of", data.as_of.isoformat(), "--out", str(out)]
        done = subprocess.run(  # noqa: S603 (our own command, no shell)
            command, cwd=ROOT_DIR, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NoDataError(f"no training set: {done.stderr.strip()[-500:]}")
        return pd.read_parquet(out)


def feature_names() -> list[str]:
    """Return the features of `fraud_detection_v1`, in the contract's order."""
    contract = yaml.safe_load((ROOT_DIR / "contracts/feature_services/fraud_detection_v1.yaml").read_text())
    return [feature["name"] for feature in contract["features"]]


def profile(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a column: type, missing and distinct values, smallest and largest."""
    return pd.DataFrame(
        {
            "type": frame.dtypes.astype(str),
            "missing": frame.isna().sum(),
            "distinct": frame.nunique(),
            "smallest": frame.min(),
            "largest": frame.max(),
        }
    )
