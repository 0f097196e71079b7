"""A proxy that delays, drips, cuts, swaps, repeats and soils replies: never another entity's features.

Every number in the store says whose it is, so that any mix-up shows. Reads go through the ladder as a
service's do, 16 at a time; those of the batch door go through its blocking connection.

Run with the settings of a stack: `PYTHONPATH=.:tests python -m faults.store_proxy --scale full`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from service_testkit import NOON, PROJECT, contract

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feature_contract import FeatureContract
from common_service_libs.online_store import FeatureReader, OnlineFeatures, Source
from common_service_libs.redis_link import RedisLink, encode_command
from common_service_libs.redis_socket import RedisSocket
from common_service_libs.resilience.breaker import CircuitBreaker
from common_service_libs.resilience.hot_snapshot import HotSnapshot
from common_service_libs.resilience.ladder import FeatureLadder
from faults.private_store import free_port, identifying_store, owner, private_store
from faults.proxy import FAULTS, ProxyProcess
from faults.served_app import command_line, result

READS = {"small": 5_000, "full": 1_000_000}
BATCHES = {"small": 8, "full": 3_000}
ENTITIES = {"small": 200, "full": 2_000}
MODES = {"small": FAULTS, "full": (*FAULTS, "mixed")}
AT_A_TIME = 16
BATCH_ROWS = 40
DEADLINE_SECONDS = 0.05
SECONDS_A_MODE = {"small": 0.6, "full": 1800.0}


class Reasons(logging.Handler):
    """Counts why connections were given up."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.seen[str(getattr(record, "reason", "")).partition(":")[0]] += 1


class Judge:
    """Looks at every value that a read gave: whose is it?"""

    def __init__(self, parsed: FeatureContract) -> None:
        key_of = {entity.name: entity.join_key for entity in parsed.entities}
        self._key_of = {field.name: key_of[view.entity] for view in parsed.views for field in view.fields}
        self.reads: Counter[Source] = Counter()
        self.values = 0
        self.foreign = 0

    def read(self, ids: Mapping[str, int], features: OnlineFeatures) -> None:
        self.reads[features.source] += 1
        for name, value in {**features.values, **features.stale_values}.items():
            self.column(name, ids[self._key_of[name]], value)

    def column(self, name: str, wanted: int, value: Any) -> None:
        self.values += 1
        if not isinstance(value, float) or owner(value) != wanted:
            self.foreign += 1

    def join_key(self, name: str) -> str:
        return self._key_of[name]


async def _reads(scale: str, proxy: ProxyProcess, password: str, judge: Judge) -> tuple[int, int]:
    """Return how many reads met which end: answered by the store, and by other replies than their own."""
    rng = random.Random(7)
    entities, wanted = ENTITIES[scale], READS[scale] // len(MODES[scale])
    # Connections come back at once, so that as many reads as can be meet the fault.
    link = RedisLink(
        "127.0.0.1", proxy.port, password, deadline=DEADLINE_SECONDS, connect_deadline=0.5,
        breaker=CircuitBreaker(probe_seconds=0.005, first_probe_seconds=0.005),
    )  # fmt: skip
    reader = FeatureReader(contract("fraud_detection_v1"), PROJECT)
    ladder = FeatureLadder(link, HotSnapshot(entities))
    done = answers = mixed_up = 0

    async def client(until: float) -> None:
        nonlocal done, answers, mixed_up
        while done < wanted and time.monotonic() < until:
            if not link.up and rng.random() < 0.9:
                await asyncio.sleep(0.001)
                continue
            done += 1
            ids = {name: rng.randint(1, entities) for name in ("customer_id", "terminal_id")}
            mark = b"%d" % rng.getrandbits(60)
            features, replies = await ladder.read(reader, ids, NOON, [encode_command(b"ECHO", mark)])
            judge.read(ids, features)
            if features.source is Source.ONLINE:
                answers += 1
                mixed_up += list(replies) != [mark]

    await link.open()
    for mode in MODES[scale]:
        proxy.mode("pass")
        while not link.up:
            await asyncio.sleep(0.005)
        proxy.mode(mode)
        done, until = 0, time.monotonic() + SECONDS_A_MODE[scale]
        await asyncio.gather(*(client(until) for _ in range(AT_A_TIME)))
    proxy.mode("pass")
    await link.close()
    return answers, mixed_up


def _batches(scale: str, proxy: ProxyProcess, password: str, judge: Judge) -> int:
    """Read batches through the blocking connection; return how many were answered."""
    rng = np.random.default_rng(7)
    parsed, answered = contract("fraud_detection_v1"), 0
    reader = FeatureReader(parsed, PROJECT)
    with RedisSocket("127.0.0.1", proxy.port, password, timeout_seconds=0.1) as store:
        for mode in ("swap", "repeat", "truncate", "garbage"):
            proxy.mode(mode)
            for _ in range(BATCHES[scale] // 4):
                ids = {
                    name: rng.integers(1, ENTITIES[scale] + 1, BATCH_ROWS).tolist()
                    for name in ("customer_id", "terminal_id")
                }
                payload, expected, _ = reader.commands(ids)
                try:
                    columns = reader.decode_many(store.call(payload, expected), NOON)
                except OnlineStoreError:
                    continue
                answered += 1
                for name, column in columns.values.items():
                    for wanted, value in zip(ids[judge.join_key(name)], column.tolist(), strict=True):
                        if value == value:  # NaN: invalid, and said so
                            judge.column(name, wanted, value)
    proxy.mode("pass")
    return answered


def run(scale: str) -> dict[str, Any]:
    """Return what was measured."""
    parsed = contract("fraud_detection_v1")
    judge, batch_judge, reasons = Judge(parsed), Judge(parsed), Reasons()
    link_log = logging.getLogger("common_service_libs.redis_link")
    link_log.addHandler(reasons)
    try:
        with tempfile.TemporaryDirectory() as folder, private_store(Path(folder)) as store:
            store.fill(identifying_store(parsed, PROJECT, ENTITIES[scale], NOON))
            with ProxyProcess(free_port(), store.port) as proxy:
                answers, mixed_up = asyncio.run(_reads(scale, proxy, store.password, judge))
                batches = _batches(scale, proxy, store.password, batch_judge)
    finally:
        link_log.removeHandler(reasons)
    reads = sum(judge.reads.values())
    detected = reasons.seen["the reply to another call"] + reasons.seen["not the reply to a transaction"]
    print(dict(judge.reads), dict(reasons.seen))
    return {
        "results": [
            result("reads through the proxy", reads, "reads", None, met=reads > 0),
            result("of them answered by the store", answers, "reads", None, met=answers > reads / 20),
            result("values of another entity", judge.foreign, "values", 0, met=judge.foreign == 0),
            result("values looked at", judge.values, "values", None, met=judge.values > reads),
            result("replies to other commands mixed up", mixed_up, "replies", 0, met=mixed_up == 0),
            result("foreign replies found out", detected, "connections", None, met=detected > 0),
            result("batches answered", batches, "batches", None, met=batches > 0),
            result("values of another entity in batches", batch_judge.foreign, "values", 0,
                   met=batch_judge.foreign == 0),
        ]
    }  # fmt: skip


if __name__ == "__main__":
    command_line(__doc__ or "", run)
