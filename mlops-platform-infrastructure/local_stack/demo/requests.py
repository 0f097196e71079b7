"""Real requests for the APIs: known frauds, known good transactions, strangers, subscribers, a viewer."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SCENARIOS = {1: "amount over 220", 2: "compromised terminal", 3: "compromised customer"}
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class ApiRequest:
    """One call: which service, what is known about it, the body to send, and by which route."""

    service: str
    known_as: str
    body: dict[str, Any]
    route: str = "predict"


class ApiError(Exception):
    """An API did not answer a valid request with a decision."""


def pick_transactions(landing: Path, day: date, today: date, frauds: int, good: int) -> list[ApiRequest]:
    """Return requests made from the transactions of `day`, moved to the same hour of `today` (UTC).

    Takes up to `frauds` of each scenario and `good` others, spread over the day; last comes a customer and a
    terminal nobody has seen. The amount, customer and terminal are the simulated ones.
    """
    rows = pq.read_table(landing / f"transactions_{day}.parquet").to_pylist()
    labels = pq.read_table(landing / f"labels_{day}.parquet").to_pylist()
    scenario = {row["transaction_id"]: row["fraud_scenario"] for row in labels}
    shift = today - day

    def request(row: Mapping[str, Any], known_as: str) -> ApiRequest:
        at: datetime = row["tx_datetime"] + shift
        body = {key: row[key] for key in ("transaction_id", "customer_id", "terminal_id", "tx_amount")}
        return ApiRequest("fraud", known_as, body | {"tx_datetime": f"{at:%Y-%m-%dT%H:%M:%SZ}"})

    chosen: list[ApiRequest] = []
    for number, name in SCENARIOS.items():
        of_scenario = [row for row in rows if scenario[row["transaction_id"]] == number]
        chosen += [request(row, f"fraud: {name}") for row in spread(of_scenario, frauds)]
    genuine = [row for row in rows if scenario[row["transaction_id"]] == 0]
    chosen += [request(row, "genuine") for row in spread(genuine, good)]
    stranger = {"customer_id": 2**40, "terminal_id": 2**40, "tx_amount": 25.0}
    noon = datetime.combine(today, time(12))
    chosen.append(
        ApiRequest(
            "fraud", "unknown customer and terminal", stranger | {"tx_datetime": f"{noon:%Y-%m-%dT%H:%M:%SZ}"}
        )
    )
    return chosen


def pick_subscribers(count: int, subscribers: int) -> list[ApiRequest]:
    """Return requests for `count` subscribers, spread over ids 1 to `subscribers`."""
    return [
        ApiRequest("churn", "subscriber", {"subscriber_id": number})
        for number in spread(range(1, subscribers + 1), count)
    ]


def pick_viewer(viewer: int, movies: int) -> ApiRequest:
    """Return the request for a viewer's list of `movies`."""
    return ApiRequest("recommendation", "viewer", {"viewer_id": viewer, "k": movies}, "recommend")


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Return `count` members of `rows` at equal distances (all of them when there are fewer).

    >>> spread([0, 1, 2, 3, 4, 5], 3)
    [0, 2, 4]
    """
    if count >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def send(request: ApiRequest, address: str, key: str) -> dict[str, Any]:
    """Send the request, ask for its explanation, and return both beside what was known.

    Raises ApiError with the API's own words when it refuses or does not answer.
    """
    reply = call(f"{address}/{request.route}", key, request.body)
    explanation = call(f"{address}/decisions/{reply['request_id']}/explain", key, {})
    return {
        "service": request.service,
        "known_as": request.known_as,
        "request": request.body,
        **{name: reply[name] for name in ("request_id", "score", "decision", "reason_codes", "latency_ms")},
        "degraded": reply["degraded"],
        "feature_status": reply["feature_status"],
        "explanation": explanation,
        **({"movies": reply["movies"]} if "movies" in reply else {}),
    }


def call(url: str, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """POST a JSON body and return the JSON reply; raises ApiError for anything but a 200."""
    request = urllib.request.Request(  # noqa: S310 - the address is the stack's own
        url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "X-API-Key": key},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise ApiError(
            f"{url} answered {error.code}: {error.read().decode(errors='replace')[:500]}"
        ) from None
    except OSError as error:
        raise ApiError(f"{url} does not answer: {error}") from None
