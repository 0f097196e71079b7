"""Card transactions as they are landed, sent to the topic and asked about."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from kafka import KafkaProducer

TOPIC = "transactions.v1"


@dataclass(frozen=True)
class Transaction:
    """One card transaction of the landed day; `at` is UTC."""

    transaction_id: int
    at: datetime
    customer_id: int
    terminal_id: int
    tx_amount: float

    @property
    def time_text(self) -> str:
        """The time as RFC 3339 with microseconds and `Z`."""
        return self.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def body(self) -> dict[str, Any]:
        """Return it as the fraud API's request and as the topic's value: both have these five fields."""
        return {
            "transaction_id": self.transaction_id,
            "tx_datetime": self.time_text,
            "customer_id": self.customer_id,
            "terminal_id": self.terminal_id,
            "tx_amount": self.tx_amount,
        }


def read_day(landing: Path, day: date) -> list[Transaction]:
    """Return the landed transactions of a day, in order of time and number."""
    rows = pq.read_table(landing / f"transactions_{day}.parquet").to_pylist()
    transactions = [
        Transaction(
            row["transaction_id"],
            row["tx_datetime"],
            row["customer_id"],
            row["terminal_id"],
            row["tx_amount"],
        )
        for row in rows
    ]
    return sorted(transactions, key=lambda one: (one.at, one.transaction_id))


def publish(producer: KafkaProducer, topic: str, transactions: Iterable[Transaction]) -> None:
    """Send transactions, keyed by customer, and wait until the broker has them all."""
    sent = [
        producer.send(topic, key=str(one.customer_id).encode(), value=json.dumps(one.body()).encode())
        for one in transactions
    ]
    producer.flush()
    for future in sent:
        future.get(timeout=10)
