"""How fast features are read online, beside the bare read of the same fields and beside the Feast SDK.

Run with the settings of a running stack: `make bench-online-read`. The same rows, in the same server, are
read by everyone in turns, so that a busy machine is busy for all. One entity has 30 features in 3 views, as a
feature service asks for them. Medians; targets stand in `bench_targets.yaml`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import redis
import uvloop
import yaml
from service_testkit import encoded_timestamp, encoded_value
from stack_testkit import FeastPeer, empty_online_store, redis_client, setting

from common_service_libs.feast_layout import entity_key, field_name, timestamp_field
from common_service_libs.feature_contract import FeatureContract, parse_contract
from common_service_libs.feature_vector import VectorBuilder
from common_service_libs.online_feature_reader import OnlineFeatureReader
from common_service_libs.online_store import FeatureReader
from common_service_libs.redis_link import RedisLink
from common_service_libs.redis_socket import RedisSocket

PROJECT = "bench_online_read"
TARGETS = Path(__file__).with_name("bench_targets.yaml")
NOW = float(int(time.time()))
KINDS = ("int64", "int64", "int64", "int64", "float64", "float64", "float64", "float64", "float64", "string")
VIEWS = ("card_daily", "card_today", "card_profile")
STORE_ENTITIES = 2_000
WORDS = ("Month-to-month", "One year", "Two year", "No", "Yes")


def document() -> dict[str, Any]:
    """Return the contract: one entity, three views of ten fields, all of them in the vector."""
    views = [
        {
            "name": view,
            "entity": "card",
            "ttl_seconds": 86400,
            "fields": [{"name": f"{view}_{i}", "type": kind} for i, kind in enumerate(KINDS)],
        }
        for view in VIEWS
    ]
    return {
        "name": "bench_v1",
        "version": 1,
        "entities": [{"name": "card", "join_key": "card_id", "type": "int64"}],
        "views": views,
        "features": [
            {"name": field["name"], "source": view["name"], "type": field["type"], "on_missing": "null"}
            for view in views
            for field in view["fields"]
        ],
    }


def fill(contract: FeatureContract, entities: range) -> None:
    """Write all views of `entities`, with values of their own, in the bytes that Feast writes."""
    rng = np.random.default_rng(entities.start)
    fields = [
        (view.name, field.type, field_name(view.name, field.name))
        for view in contract.views
        for field in view.fields
    ]
    client = redis_client()
    for start in range(entities.start, entities.stop, 1000):
        part = range(start, min(start + 1000, entities.stop))
        with client.pipeline(transaction=False) as pipe:
            counts = rng.integers(0, 500, (len(part), len(fields))).tolist()
            amounts = rng.lognormal(3, 1, (len(part), len(fields))).tolist()
            ages = rng.integers(0, 40_000 * 10**6, (len(part), len(contract.views))).tolist()
            for row, entity in enumerate(part):
                hash_ = {
                    name: encoded_value(
                        {
                            "int64": counts[row][at],
                            "float64": amounts[row][at],
                            "string": WORDS[counts[row][at] % 5],
                        }[kind]
                    )
                    for at, (_, kind, name) in enumerate(fields)
                }
                for at, view in enumerate(VIEWS):
                    # A daily view is of midnight; the others have times of their own.
                    hash_[timestamp_field(view)] = encoded_timestamp(
                        NOW - 50_000 if at == 0 else NOW - ages[row][at] / 1e6
                    )
                pipe.hset(entity_key("card_id", entity, PROJECT), mapping=hash_)
            pipe.execute()


Case = list[int]
Turn = Callable[[list[Case]], list[float]]


class Readers:
    """Everyone who reads: each method returns the seconds that the read of each case took.

    What the raw readers send is made before the clock starts, and they decode nothing.
    """

    def __init__(self, contract: FeatureContract) -> None:
        address = (setting("REDIS_HOST"), int(setting("REDIS_PORT")))
        password = setting("REDIS_PASSWORD")
        self.contract = contract
        self.reader, self.vectors = FeatureReader(contract, PROJECT), VectorBuilder(contract)
        self.socket = RedisSocket(*address, password)
        self.blocking = OnlineFeatureReader(contract, PROJECT, RedisSocket(*address, password))
        self.redis_py = redis.Redis(*address, password=password)
        self.loop = uvloop.new_event_loop()
        self.link = RedisLink(*address, password, deadline=5, connect_deadline=5)
        self.loop.run_until_complete(self.link.open())

    def raw_socket(self, cases: list[Case]) -> list[float]:
        """A blocking socket and hiredis."""
        commands = [self.reader.commands({"card_id": case}) for case in cases]
        return [seconds(lambda c=c: self.socket.call(c[0], c[1])) for c in commands]

    def raw_redis_py(self, cases: list[Case]) -> list[float]:
        """What one writes with redis-py (and hiredis): a pipeline of HMGETs."""
        fields = [
            field
            for view in self.contract.views
            for field in (*(field_name(view.name, f.name) for f in view.fields), timestamp_field(view.name))
        ]

        def read(keys: list[bytes]) -> None:
            with self.redis_py.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hmget(key, fields)
                pipe.execute()

        keys = [[entity_key("card_id", entity, PROJECT) for entity in case] for case in cases]
        return [seconds(lambda k=k: read(k)) for k in keys]

    def raw_loop(self, cases: list[Case]) -> list[float]:
        """The service's own connection in its event loop."""
        commands = [self.reader.commands({"card_id": case}) for case in cases]

        async def reads() -> list[float]:
            taken = []
            for payload, expected, _ in commands:
                began = time.perf_counter()
                await self.link.call(payload, expected)
                taken.append(time.perf_counter() - began)
            return taken

        return self.loop.run_until_complete(reads())

    def service(self, cases: list[Case]) -> list[float]:
        """What a decision does: read in the event loop, decode, build the vector."""

        async def reads() -> list[float]:
            taken = []
            for [entity] in cases:
                began = time.perf_counter()
                online = await self.reader.read(self.link, {"card_id": entity}, NOW)
                self.vectors.build(online, {})
                taken.append(time.perf_counter() - began)
            return taken

        return self.loop.run_until_complete(reads())

    def one(self, cases: list[Case]) -> list[float]:
        """The blocking door, one entity: the vector with the status of each value."""
        return [seconds(lambda e=e: self.blocking.read({"card_id": e}, NOW)) for [e] in cases]

    def many(self, cases: list[Case]) -> list[float]:
        """The blocking door, many entities: columns with the status of each value."""
        return [seconds(lambda c=c: self.blocking.read_many({"card_id": c}, NOW)) for c in cases]

    def close(self) -> None:
        self.loop.run_until_complete(self.link.close())
        self.loop.close()
        self.blocking.close()
        self.socket.close()
        self.redis_py.close()


def seconds(read: Callable[[], Any]) -> float:
    began = time.perf_counter()
    read()
    return time.perf_counter() - began


def medians(
    turns: Mapping[str, tuple[Turn, int]], entities: int, rounds: int, stored: int
) -> dict[str, float]:
    """Let everyone read in turns, each so many cases a round; return each one's median seconds.

    A case is `entities` of the `stored` ones, at random.
    """
    rng, taken = np.random.default_rng(0), {name: list[float]() for name in turns}
    for number in range(rounds + 1):
        for name, (turn, repeats) in turns.items():
            found = turn(rng.integers(0, stored, (repeats, entities)).tolist())
            if number:  # the first round warms up
                taken[name] += found
    return {name: statistics.median(values) for name, values in taken.items()}


def require_equal(readers: Readers, peer: FeastPeer, ids: list[int]) -> int:
    """Return how many values the SDK and this root read alike; raises RuntimeError where they differ."""
    table, sdk = readers.blocking.read_many({"card_id": ids}, NOW), peer.read({"card_id": ids})
    for name, column in table.columns.items():
        if column.tolist() != sdk[name]:
            raise RuntimeError(f"{name}: the SDK and this reader do not read the same")
    return len(ids) * len(table.columns)


def result(
    name: str,
    value: float,
    unit: str,
    peer: str | None = None,
    peer_value: float | None = None,
    *,
    floor: bool = False,
) -> dict[str, Any]:
    """Return one figure; the ratio is how many times faster it is or, of a floor, how many times that."""
    ratio = None
    if peer_value is not None:
        ratio = value / peer_value if floor else peer_value / value
    target = yaml.safe_load(TARGETS.read_text()).get(name)
    met = None
    if target is not None and ratio is not None:
        sign, bound = target.split()
        met = ratio <= float(bound) if sign == "<=" else ratio >= float(bound)
    return {
        "name": name, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value,
        "ratio": ratio, "target": target, "met": met,
    }  # fmt: skip


def growth(name: str, multiple: int, rows: int, seconds: float) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"name": name, "multiple": multiple, "rows": rows, "seconds": seconds, "peak_mb": peak}


def run(quick: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Fill the store, measure, empty the store; return results and growth."""
    rounds, stored = (3, STORE_ENTITIES // 10) if quick else (30, STORE_ENTITIES)
    contract = parse_contract(document())
    fill(contract, range(stored))
    readers = Readers(contract)
    results, curve = [], []
    try:
        with FeastPeer(document(), PROJECT) as peer:
            compared = require_equal(readers, peer, list(range(200)))
            print(f"{compared} values equal the SDK's", flush=True)
            us, sdk = 1e6, lambda cases: peer.seconds([{"card_id": case} for case in cases])
            one = medians(
                {
                    "raw socket": (readers.raw_socket, 50), "redis-py": (readers.raw_redis_py, 50),
                    "raw loop": (readers.raw_loop, 50), "service": (readers.service, 50),
                    "blocking": (readers.one, 50), "sdk": (sdk, 20),
                },
                1, rounds, stored,
            )  # fmt: skip
            hundred = medians(
                {
                    "raw socket": (readers.raw_socket, 3), "redis-py": (readers.raw_redis_py, 3),
                    "many": (readers.many, 3), "sdk": (sdk, 2),
                },
                100, rounds, stored,
            )  # fmt: skip
        results = [
            # The service's read beside the same bytes over the same connection, then beside other raw reads.
            result("online read, 1 entity, times the raw read", one["service"] * us, "us",
                   "pipelined HMGET, uvloop + hiredis", one["raw loop"] * us, floor=True),
            result("online read, 1 entity, times the bare blocking socket", one["service"] * us, "us",
                   "pipelined HMGET, blocking socket + hiredis", one["raw socket"] * us, floor=True),
            result("online read, 1 entity, times redis-py", one["service"] * us, "us",
                   "pipelined HMGET, redis-py + hiredis", one["redis-py"] * us, floor=True),
            result("online read, 1 entity, blocking, times the raw read", one["blocking"] * us, "us",
                   "pipelined HMGET, blocking socket + hiredis", one["raw socket"] * us, floor=True),
            result("online read, 1 entity, times faster than the SDK", one["service"] * us, "us",
                   "Feast SDK, get_online_features", one["sdk"] * us),
            result("online read, 100 entities, times faster than the SDK", hundred["many"] * us, "us",
                   "Feast SDK, get_online_features", hundred["sdk"] * us),
            result("online read, 100 entities, times the raw read", hundred["many"] * us, "us",
                   "pipelined HMGETs, blocking socket + hiredis", hundred["raw socket"] * us, floor=True),
            result("online read, 100 entities, times redis-py", hundred["many"] * us, "us",
                   "pipelined HMGETs, redis-py + hiredis", hundred["redis-py"] * us, floor=True),
        ]  # fmt: skip
        for entities in (1, 10, 100, 1000):
            found = medians({"many": (readers.many, 3)}, entities, rounds, stored)
            curve.append(growth("online read, entities", entities, entities, found["many"]))
        for multiple in (1, 4, 16):
            if multiple > 1:
                fill(contract, range(stored * multiple // 4, stored * multiple))
            found = medians({"many": (readers.many, 3)}, 100, rounds, stored * multiple)
            name = "online read, 100 entities, size of the store"
            curve.append(growth(name, multiple, stored * multiple, found["many"]))
    finally:
        readers.close()
        empty_online_store(PROJECT)
    return results, curve


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench_online_read", description="Speed of the online read.")
    parser.add_argument("--quick", action="store_true", help="a few rounds, to see that it works")
    options = parser.parse_args()
    results, curve = run(options.quick)
    report = {
        "command": "make bench-online-read",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "results": results,
        "growth": curve,
    }
    target = Path(setting("REPORTS_DIR")) / "bench-online-read.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1))
    for row in results:
        judgement = {True: "met", False: "MISSED", None: "-"}[row["met"]]
        beside = f"{row['ratio']:.2f}, {row['peer']} {row['peer_value']:.4g}"
        print(f"{judgement:7} {row['name']}: {row['value']:.4g} {row['unit']} ({beside})")
    for row in curve:
        print(f"        {row['name']} x{row['multiple']}: {row['seconds'] * 1e6:.4g} us")
    print(f"report: {target}")
    return 1 if any(row["met"] is False for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
