"""The fraud features once more, written apart: plain pandas over the landing files, a transaction at a time.

It shares no code with the platform and takes the definitions of docs/architecture.md literally, so that an
error in dbt, Feast, the contract's expressions or the online store cannot hide in both.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

DELAY_DAYS = 7
WINDOWS = (1, 7, 30)


def read_landing(folder: Path) -> pd.DataFrame:
    """All transactions with their labels, sorted by time; one row a transaction, times in UTC."""
    transactions = pd.concat(
        [pd.read_parquet(path) for path in sorted(folder.glob("transactions_*.parquet"))]
    )
    labels = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("labels_*.parquet"))])
    merged = transactions.merge(
        labels[["transaction_id", "is_fraud"]], on="transaction_id", how="left", validate="one_to_one"
    )
    assert merged["is_fraud"].notna().all()
    merged["tx_datetime"] = pd.to_datetime(merged["tx_datetime"], utc=True)
    return merged.sort_values("tx_datetime", ignore_index=True)


class FeatureOracle:
    """Computes `fraud_detection_v1` for one transaction from the raw history."""

    def __init__(self, history: pd.DataFrame) -> None:
        self._customers = dict(tuple(history.groupby("customer_id")))
        self._terminals = dict(tuple(history.groupby("terminal_id")))
        self._nothing = history.iloc[:0]

    def features(
        self, customer_id: int, terminal_id: int, at: pd.Timestamp, amount: float
    ) -> dict[str, float]:
        """The vector of a transaction at time `at` (UTC): only what was known strictly before it."""
        midnight = at.normalize()
        customer = self._before(self._customers.get(customer_id), at)
        terminal = self._before(self._terminals.get(terminal_id), at)
        values = {
            "tx_amount": amount,
            "tx_is_weekend": float(at.weekday() >= 5),
            "tx_is_night": float(at.hour <= 6),
        }
        for days in WINDOWS:
            since = midnight - pd.Timedelta(days=days)
            spent = customer[customer["tx_datetime"] >= since]["tx_amount"]
            values[f"customer_tx_count_{days}d"] = float(len(spent) + 1)
            values[f"customer_tx_amount_mean_{days}d"] = (spent.sum() + amount) / (len(spent) + 1)
            values[f"terminal_tx_count_{days}d"] = float((terminal["tx_datetime"] >= since).sum() + 1)
            end = midnight - pd.Timedelta(days=DELAY_DAYS)
            start = end - pd.Timedelta(days=days)
            labelled = terminal[(terminal["tx_datetime"] >= start) & (terminal["tx_datetime"] < end)]
            values[f"terminal_labelled_tx_count_{days}d"] = float(len(labelled))
            values[f"terminal_fraud_risk_{days}d"] = (
                float(labelled["is_fraud"].sum()) / len(labelled) if len(labelled) else 0.0
            )
        return values

    def _before(self, rows: pd.DataFrame | None, at: pd.Timestamp) -> pd.DataFrame:
        return self._nothing if rows is None else rows[rows["tx_datetime"] < at]
