"""Each request is sent several times at once, to two instances of the service with spools of their own.

All answers of one id are the same to the byte, latency included, and the record's; none is a decision that
did not become the record. Some are 503: the other instance's record did not appear in time.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psycopg
from service_testkit import KEY
from stack_testkit import conninfo

from faults.recorded_service import SERVICE, RecordedService
from faults.served_app import command_line, result

IDS = {"small": 60, "full": 5000}
AT_ONCE = 8
PATIENCE_SECONDS = 5  # a busy machine is not what is tested
COPIES = 2  # to each instance


async def _send(urls: list[str], name: str, ids: int) -> tuple[dict[str, set[bytes]], Counter[int]]:
    """Return the different answers with 200 of each id, and how often each status came."""
    answers: dict[str, set[bytes]] = {}
    statuses: Counter[int] = Counter()
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(http: httpx.AsyncClient, number: int) -> None:
        request_id = f"{name}-{number}"
        body = {
            "customer_id": number,
            "terminal_id": number,
            "tx_amount": number % 400 + 0.5,
            "transaction_id": name,
        }
        headers = {"X-API-Key": KEY, "Idempotency-Key": request_id}
        async with turns:
            replies = await asyncio.gather(
                *(http.post(f"{url}/predict", json=body, headers=headers) for url in urls * COPIES)
            )
        statuses.update(reply.status_code for reply in replies)
        answers[request_id] = {reply.content for reply in replies if reply.status_code == 200}

    async with httpx.AsyncClient(timeout=20) as http:
        await asyncio.gather(*(one(http, number) for number in range(ids)))
    return answers, statuses


def _counter(service: RecordedService, name: str) -> float:
    lines = service.process.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def _recorded(name: str) -> dict[str, list[float]]:
    with psycopg.connect(conninfo()) as connection:
        rows = connection.execute(
            "select request_id, latency_ms from decisions.decision_records "
            "where service = %s and request ->> 'transaction_id' = %s",
            (SERVICE, name),
        ).fetchall()
    found: dict[str, list[float]] = {}
    for request_id, latency in rows:
        found.setdefault(request_id, []).append(latency)
    return found


def run(scale: str) -> dict[str, Any]:
    """Send so many ids to two instances at once and return what was answered and recorded."""
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2):
            (Path(folder) / str(number)).mkdir()
        with (
            RecordedService(Path(folder) / "1", decision_store_deadline_seconds=PATIENCE_SECONDS) as one,
            RecordedService(Path(folder) / "2", decision_store_deadline_seconds=PATIENCE_SECONDS) as two,
        ):
            one.process.wait()
            two.process.wait()
            urls = [one.process.url, two.process.url]
            answers, statuses = asyncio.run(_send(urls, one.name, IDS[scale]))
            one.drained()
            two.drained()
            records = _recorded(one.name)
            unchecked = sum(_counter(s, "decision_repeats_unchecked_total") for s in (one, two))
    different = [request_id for request_id, seen in answers.items() if len(seen) > 1]
    wrong = [
        request_id
        for request_id, seen in answers.items()
        for reply in seen
        if not any(f'"latency_ms":{latency}'.encode() in reply for latency in records.get(request_id, []))
    ]
    twice = [request_id for request_id, latencies in records.items() if len(latencies) > 1]
    other = statuses.total() - statuses[200] - statuses[503]
    print(dict(statuses))
    return {
        "results": [
            result("ids sent to two instances at once", len(answers), "ids", None, met=len(answers) > 0),
            result("answers", statuses[200], "answers", None, met=statuses[200] >= len(answers)),
            result("ids with different answers", len(different), "ids", 0, met=not different),
            result("answers that are not the record", len(wrong), "answers", 0, met=not wrong),
            result("ids recorded twice", len(twice), "ids", 0, met=not twice),
            result(
                "ids that the database was too slow to tell of", unchecked, "requests", 0, met=unchecked == 0
            ),
            result("refused with 503", statuses[503], "requests", None, met=True),
            result("other statuses", other, "requests", 0, met=other == 0),
        ]
    }


if __name__ == "__main__":
    command_line(__doc__ or "", run)
