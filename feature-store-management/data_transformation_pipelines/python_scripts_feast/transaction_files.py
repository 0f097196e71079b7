"""What a day's landing files must be to enter the raw tables: the boundary where they are validated, once.

Pure: bytes in, columns out. RefusedFileError says which file is wrong, and how.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .landing_files import LABELS_SCHEMA, TRANSACTIONS_SCHEMA, file_name


class RefusedFileError(Exception):
    """A landing file is not what it must be; nothing of its day is loaded."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


@dataclass(frozen=True)
class TransactionColumns:
    """A day's transactions; `tx_datetime` is datetime64[us] in UTC, `tx_amount` in USD."""

    transaction_id: NDArray[np.int64]
    tx_datetime: NDArray[np.datetime64]
    customer_id: NDArray[np.int64]
    terminal_id: NDArray[np.int64]
    tx_amount: NDArray[np.float64]


@dataclass(frozen=True)
class LabelColumns:
    """A day's labels, in the order of its transactions."""

    is_fraud: NDArray[np.int16]
    fraud_scenario: NDArray[np.int16]


def parse_transactions(content: bytes, day: date) -> TransactionColumns:
    """Return the transactions of a day's file, or refuse it."""
    name = file_name("transactions", day)
    table = _typed_table(name, content, TRANSACTIONS_SCHEMA)
    columns = TransactionColumns(
        table["transaction_id"].to_numpy(),
        table["tx_datetime"].cast(pa.timestamp("us")).to_numpy(),
        table["customer_id"].to_numpy(),
        table["terminal_id"].to_numpy(),
        table["tx_amount"].to_numpy(),
    )
    _refuse_repeated_ids(name, columns.transaction_id)
    midnight = np.datetime64(day, "us")
    outside = (columns.tx_datetime < midnight) | (columns.tx_datetime >= midnight + np.timedelta64(1, "D"))
    _refuse_rows(name, outside, columns.transaction_id, f"tx_datetime is not on {day}")
    _refuse_rows(name, ~np.isfinite(columns.tx_amount), columns.transaction_id, "tx_amount is not finite")
    _refuse_rows(name, columns.tx_amount < 0, columns.transaction_id, "tx_amount is negative")
    return columns


def parse_labels(content: bytes, day: date, transaction_ids: NDArray[np.int64]) -> LabelColumns:
    """Return a day's labels in the order of `transaction_ids`, one each, or refuse the file."""
    name = file_name("labels", day)
    table = _typed_table(name, content, LABELS_SCHEMA)
    ids = table["transaction_id"].to_numpy()
    is_fraud, scenario = table["is_fraud"].to_numpy(), table["fraud_scenario"].to_numpy()
    _refuse_repeated_ids(name, ids)
    _refuse_rows(name, ~np.isin(ids, transaction_ids), ids, "no such transaction that day")
    _refuse_rows(name, ~np.isin(transaction_ids, ids), transaction_ids, "the transaction has no label")
    _refuse_rows(name, (is_fraud != 0) & (is_fraud != 1), ids, "is_fraud is neither 0 nor 1")
    _refuse_rows(name, scenario < 0, ids, "fraud_scenario is negative")
    _refuse_rows(name, (is_fraud == 0) & (scenario != 0), ids, "a good transaction has a fraud_scenario")
    order = np.argsort(ids)[np.argsort(np.argsort(transaction_ids))]
    return LabelColumns(is_fraud[order], scenario[order])


def label_known_at(tx_datetime: NDArray[np.datetime64], delay: timedelta) -> NDArray[np.datetime64]:
    """Return when the labels of transactions become known."""
    return tx_datetime + np.timedelta64(delay, "us")


def _typed_table(name: str, content: bytes, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise RefusedFileError(name, f"not a readable Parquet file ({_first_line(error)})") from None
    found, wanted = list(table.schema.names), schema.names
    if sorted(found) != sorted(wanted):
        raise RefusedFileError(
            name, f"has the columns {', '.join(found) or 'none'} instead of {', '.join(wanted)}"
        )
    for field in schema:
        if table.schema.field(field.name).type != field.type:
            found_type = table.schema.field(field.name).type
            raise RefusedFileError(name, f"{field.name} is {found_type} instead of {field.type}")
        missing = table[field.name].null_count
        if missing:
            raise RefusedFileError(name, f"{field.name} is missing in {missing} rows")
    return table.select(wanted)


def _refuse_repeated_ids(name: str, ids: NDArray[np.int64]) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        repeated = values[counts > 1]
        raise RefusedFileError(name, f"transaction_id is not unique: {_some(repeated)}")


def _refuse_rows(name: str, wrong: NDArray[np.bool_], ids: NDArray[np.int64], reason: str) -> None:
    if wrong.any():
        raise RefusedFileError(name, f"{reason}: transaction {_some(ids[wrong])}")


def _some(ids: NDArray[np.int64]) -> str:
    shown = ", ".join(str(number) for number in ids[:3])
    return shown if len(ids) <= 3 else f"{shown} and {len(ids) - 3} more"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
