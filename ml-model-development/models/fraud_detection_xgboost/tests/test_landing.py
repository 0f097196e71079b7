"""Reading a landing folder, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from src.landing import read_landing
from src.windows import DAY

from common_ml_utils.errors import DataError, SchemaMismatchError

DAYS = ("2026-05-22", "2026-05-23")


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    """Two days of three transactions each, on a calendar far from 2018."""
    files = []
    for i, day in enumerate(DAYS):
        ids = [3 * i, 3 * i + 1, 3 * i + 2]
        times = pd.to_datetime([f"{day}T00:00:05Z", f"{day}T06:59:59Z", f"{day}T23:00:00Z"])
        frames = {
            "transactions": pd.DataFrame(
                {
                    "transaction_id": ids,
                    "tx_datetime": times.astype("datetime64[us, UTC]"),
                    "customer_id": [1, 2, 1],
                    "terminal_id": [7, 7, 8],
                    "tx_amount": [10.0, 20.5, 300.0],
                }
            ),
            "labels": pd.DataFrame(
                {"transaction_id": ids, "is_fraud": [0, 0, 1], "fraud_scenario": [0, 0, 1]}
            ),
        }
        for kind, frame in frames.items():
            frame.to_parquet(tmp_path / f"{kind}_{day}.parquet")
            files.append({"name": f"{kind}_{day}.parquet", "tx_date": day, "rows": 3})
    (tmp_path / "dataset.json").write_text(json.dumps({"dataset_id": "abc", "files": files}))
    return tmp_path


def test_days_come_sorted_labelled_and_on_the_handbooks_calendar(landing: Path) -> None:
    read = read_landing(landing)
    frame = read.transactions
    assert read.dataset_id == "abc"
    assert frame["day"].tolist() == [0, 0, 0, 1, 1, 1]
    assert frame["is_fraud"].tolist() == [0, 0, 1, 0, 0, 1]
    assert pd.Timestamp(int(frame["time"].iloc[0]), unit="us") == pd.Timestamp("2018-04-01T00:00:05")
    assert frame["time"].iloc[3] - frame["time"].iloc[0] == DAY


def rewrite(landing: Path, kind: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = landing / f"{kind}_{DAYS[1]}.parquet"
    change(pd.read_parquet(path)).to_parquet(path)


def remove_labels_of_a_day(landing: Path) -> None:
    dataset = json.loads((landing / "dataset.json").read_text())
    dataset["files"] = [file for file in dataset["files"] if file["name"] != f"labels_{DAYS[1]}.parquet"]
    (landing / "dataset.json").write_text(json.dumps(dataset))


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda f: (f / "dataset.json").unlink(), DataError, "no dataset.json"),
        (lambda f: (f / "dataset.json").write_text("[]"), DataError, "not a list of landing files"),
        (
            lambda f: (f / "dataset.json").write_text('{"dataset_id": 1, "files": []}'),
            DataError,
            "no transac",
        ),
        (lambda f: (f / f"labels_{DAYS[1]}.parquet").unlink(), DataError, "not there"),
        (lambda f: (f / f"labels_{DAYS[1]}.parquet").write_bytes(b"PAR1"), DataError, "not a readable"),
        (
            lambda f: rewrite(f, "transactions", lambda frame: frame.drop(columns="tx_amount")),
            SchemaMismatchError,
            r"lacks the columns \['tx_amount'\]",
        ),
        (lambda f: rewrite(f, "transactions", lambda frame: frame.iloc[1:]), DataError, "says 3"),
        (
            lambda f: rewrite(f, "labels", lambda frame: frame.assign(transaction_id=[3, 4, 99])),
            DataError,
            "1 transactions have no label",
        ),
        (remove_labels_of_a_day, DataError, "6 transactions, but 3 labels"),
    ],
)
def test_a_damaged_folder_is_refused(
    landing: Path, damage: Callable[[Path], object], error: type[Exception], says: str
) -> None:
    damage(landing)
    with pytest.raises(error, match=says):
        read_landing(landing)
