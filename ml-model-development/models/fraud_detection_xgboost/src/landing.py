"""Raw transactions and labels from a landing folder: measuring as published needs no running stack."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from common_ml_utils.errors import DataError, SchemaMismatchError
from src.windows import DAY

FIRST_DAY = 17_622
"""2018-04-01 as days since the epoch: the first day of the Handbook's calendar, a Sunday."""
DATASET = "dataset.json"
COLUMNS = {
    "transactions": ["transaction_id", "tx_datetime", "customer_id", "terminal_id", "tx_amount"],
    "labels": ["transaction_id", "is_fraud"],
}


@dataclass(frozen=True)
class Landing:
    """What a landing folder holds; `transactions` are sorted by time, on the Handbook's calendar.

    Columns: `time` (microseconds, UTC), `day` (since 2018-04-01), `customer_id`, `terminal_id`, `tx_amount`
    and `is_fraud`. A calendar shifted by whole days is shifted back, so that weekends are the published ones.
    """

    dataset_id: str
    transactions: pd.DataFrame


def read_landing(folder: Path) -> Landing:
    """Read all days that the folder's `dataset.json` lists.

    Raises DataError when the folder, a file or a row is missing, SchemaMismatchError for missing columns.
    """
    try:
        dataset = json.loads((folder / DATASET).read_text(encoding="utf-8"))
        listed, dataset_id = dataset["files"], str(dataset["dataset_id"])
    except FileNotFoundError:
        raise DataError(f"{folder} has no {DATASET}: simulate transactions into it first") from None
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{folder / DATASET} is not a list of landing files: {error}") from error
    parts = {kind: [_read(folder, file, kind) for file in listed if _kind(file) == kind] for kind in COLUMNS}
    if not parts["transactions"]:
        raise DataError(f"{folder / DATASET} lists no transactions")
    transactions = pd.concat(parts["transactions"], ignore_index=True)
    labels = pd.concat(parts["labels"], ignore_index=True) if parts["labels"] else pd.DataFrame(columns=["x"])
    if len(labels) != len(transactions):
        raise DataError(f"{folder}: {len(transactions)} transactions, but {len(labels)} labels")
    joined = transactions.merge(labels, on="transaction_id", how="left", validate="one_to_one")
    if joined["is_fraud"].isna().any():
        raise DataError(f"{folder}: {joined['is_fraud'].isna().sum()} transactions have no label")
    time = joined["tx_datetime"].astype("datetime64[us, UTC]").astype("int64")
    joined["time"] = time - (time.min() // DAY - FIRST_DAY) * DAY
    joined["day"] = joined["time"] // DAY - FIRST_DAY
    joined = joined.sort_values(["time", "transaction_id"], ignore_index=True)
    return Landing(dataset_id, joined.drop(columns=["transaction_id", "tx_datetime"]))


def _kind(file: dict[str, str]) -> str:
    return file["name"].partition("_")[0]


def _read(folder: Path, file: dict[str, str], kind: str) -> pd.DataFrame:
    path = folder / file["name"]
    if not path.is_file():
        raise DataError(f"{path} is listed in {DATASET}, but not there")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    missing = [name for name in COLUMNS[kind] if name not in frame]
    if missing:
        raise SchemaMismatchError(f"{path} lacks the columns {missing}")
    if len(frame) != file["rows"]:
        raise DataError(f"{path} has {len(frame)} rows, {DATASET} says {file['rows']}")
    return frame[COLUMNS[kind]]
