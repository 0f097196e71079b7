"""From an event to a served feature: a customer pays, and the next decision knows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from kafka import KafkaProducer

from local_stack.demo.requests import ApiRequest, send
from local_stack.transactions import TOPIC, Transaction, publish

PAYMENTS = 3
COUNT, MEAN = "customer_tx_count_1d", "customer_tx_amount_mean_1d"


def pick(transactions: Collection[Transaction], taken: Collection[int]) -> Transaction:
    """Return the first transaction whose customer and terminal are not among `taken` ids."""
    return next(one for one in transactions if one.customer_id not in taken and one.terminal_id not in taken)


def payments(like: Transaction, now: datetime) -> list[Transaction]:
    """Return transactions like this one in the seconds before `now` (UTC), with numbers of their own."""
    first = int(now.timestamp() * 1_000_000)
    return [
        replace(like, transaction_id=first + n, at=now - timedelta(seconds=PAYMENTS - n))
        for n in range(PAYMENTS)
    ]


def show(like: Transaction, env: Mapping[str, str], process_stream: Callable[[], object]) -> dict[str, Any]:
    """Ask, pay three times, process the stream, ask again; returns what the decisions rested on.

    Raises ApiError where the API refuses.
    """
    before = _ask(like, env)
    paid = payments(like, datetime.now(UTC))
    began = time.monotonic()
    producer = KafkaProducer(bootstrap_servers=env["KAFKA_BOOTSTRAP_SERVERS"], acks="all")
    try:
        publish(producer, TOPIC, paid)
    finally:
        producer.close()
    process_stream()
    after = _ask(like, env)
    return {
        "customer_id": like.customer_id,
        "terminal_id": like.terminal_id,
        "payments": [one.body() for one in paid],
        "before": before,
        "after": after,
        "seconds": round(time.monotonic() - began, 1),
    }


def _ask(like: Transaction, env: Mapping[str, str]) -> dict[str, Any]:
    body = replace(like, at=datetime.now(UTC)).body()
    del body["transaction_id"]
    reply = send(ApiRequest("fraud", "pays", body), env["FRAUD_API_URL"], env["DEMO_API_KEY"])
    values = {row["feature"]: row["value"] for row in reply["explanation"]["contributions"]}
    return {
        "request_id": reply["request_id"],
        "score": reply["score"],
        "decision": reply["decision"],
        "features": values,
    }
