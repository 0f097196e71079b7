"""Materialization of three views into Redis, beside Feast's own with Feast's own Redis store.

Both read the same tables in a schema made for the run, and write into an emptied project of Redis. Each runs
in a process of its own, whose time and peak memory are those of the work; the start of Python is not counted.
"""

# ruff: noqa: S603, S608 (programs and names of this module's own)

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.types import Float64, Int64, String
from feast.value_type import ValueType
from tqdm import tqdm

from benchmarks.report import Growth, Report, Result, peak_memory
from data_source_connectors.database_connector import DatabaseSettings, connect
from data_source_connectors.settings import read_settings

ROOT = Path(__file__).parents[1]
VIEWS = ("one", "two", "three")
INTEGERS = [f"tx_count_{n}d" for n in range(4)]
DOUBLES = [f"tx_amount_mean_{n}d" for n in range(5)]
TEXTS = ["segment"]
END = datetime(2026, 11, 21, tzinfo=UTC)
ENTITIES, QUICK_ENTITIES = 100_000, 2_000
SMALLEST, QUICK_SMALLEST = 25_000, 500
MULTIPLES = (1, 4, 16)
REPEATS = 3
BATCH_ROWS = 10_000
STORES: dict[str, dict[str, Any]] = {
    "ours": {"type": "fast_redis_online_store.FastRedisOnlineStore"},
    "stock": {"type": "redis"},
    "stock without comparison": {"type": "redis", "skip_dedup": True},
}


class Ground:
    """Tables of so many entities in a schema of their own, and a project of Redis."""

    def __init__(self, folder: Path) -> None:
        self.name = f"bench_{uuid4().hex[:10]}"
        self.folder = folder
        self._stack = ExitStack()
        settings = read_settings(DatabaseSettings)
        self.database = self._stack.enter_context(connect(settings, application_name="bench_materialization"))
        self.redis = redis.Redis(
            host=os.environ["REDIS_HOST"],
            port=int(os.environ["REDIS_PORT"]),
            password=os.environ["REDIS_PASSWORD"],
            socket_timeout=60,
        )
        self.database.execute(f"create schema {self.name}")

    def fill(self, entities: int) -> None:
        """Make the tables anew: one row an entity, of the day before END."""
        columns = [f"(id * {n + 3}) % 1000 as {name}" for n, name in enumerate(INTEGERS)]
        columns += [f"random() * {n + 1} * 100 as {name}" for n, name in enumerate(DOUBLES)]
        columns += [f"'segment ' || id % 50 as {name}" for name in TEXTS]
        for view in VIEWS:
            table = f"{self.name}.{view}"
            self.database.execute(f"drop table if exists {table}")
            statement = (
                f"create table {table} as select id::bigint as customer_id, "
                f"at as event_timestamp, at as created_timestamp, {', '.join(columns)} "
                f"from generate_series(1, {entities}) as id, "
                f"lateral (select '{END}'::timestamptz - (id % 80000) * interval '1 second' as at) as times"
            )
            self.database.execute(statement)
            self.database.execute(f"vacuum analyze {table}")

    def empty(self) -> int:
        """Remove the project's keys from Redis and return how many there were."""
        own = self.name.encode()
        keys = [key for key in self.redis.scan_iter(count=10_000) if key.endswith(own)]
        for first in range(0, len(keys), 10_000):
            self.redis.unlink(*keys[first : first + 10_000])
        return len(keys)

    def close(self) -> None:
        """Remove all of it."""
        self.empty()
        self.database.execute(f"drop schema {self.name} cascade")
        self._stack.close()
        self.redis.close()


@contextmanager
def ground() -> Iterator[Ground]:
    """Yield a ground that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        made = Ground(Path(folder))
        try:
            yield made
        finally:
            made.close()


def materialized(made: Ground, who: str, entities: int) -> dict[str, float]:
    """Return seconds and peak megabytes of one materialization, by a name of STORES, into an empty Redis."""
    made.empty()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_materialization", who, made.name, str(made.folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "feast_repository")])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"materialization ({who}) failed:\n{done.stderr[-3000:]}")
    written = made.empty()
    if written != entities:
        raise RuntimeError(f"materialization ({who}) wrote {written} of {entities} keys")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run(quick: bool) -> Report:
    """Measure three views of 100,000 entities beside Feast, then the growth of ours alone."""
    entities = QUICK_ENTITIES if quick else ENTITIES
    smallest = QUICK_SMALLEST if quick else SMALLEST
    rows = entities * len(VIEWS)
    growth = []
    with ground() as made, tqdm(total=2 + REPEATS + len(MULTIPLES), desc="materialization") as bar:
        made.fill(entities)
        ours = []
        for _ in range(REPEATS):
            ours.append(materialized(made, "ours", entities))
            bar.update()
        stock = materialized(made, "stock", entities)
        bar.update()
        hasty = materialized(made, "stock without comparison", entities)
        bar.update()
        for multiple in MULTIPLES:
            made.fill(smallest * multiple)
            figures = materialized(made, "ours", smallest * multiple)
            point = Growth(
                "materialization",
                multiple,
                smallest * multiple * len(VIEWS),
                figures["seconds"],
                figures["megabytes"],
            )
            growth.append(point)
            bar.update()
    seconds = statistics.median(each["seconds"] for each in ours)
    memory = max(each["megabytes"] for each in ours)
    fields = len(VIEWS) * len(INTEGERS + DOUBLES + TEXTS)
    note = f"{rows} rows, {fields} features"
    results = [
        Result(
            "materialization, times faster than stock",
            seconds,
            "s",
            f"Feast's materialize and Redis store, {stock['megabytes']:.0f} MB",
            stock["seconds"],
            stock["seconds"] / seconds,
            note,
        ),
        Result(
            "materialization, times faster than stock that compares no times",
            seconds,
            "s",
            "Feast's materialize and Redis store with skip_dedup",
            hasty["seconds"],
            hasty["seconds"] / seconds,
            f"{note}; a row may replace a newer one there",
        ),
        Result("materialization, peak memory", memory, "MB", note=note),
    ]
    return Report(results, growth)


def feature_store(name: str, folder: Path, online_store: dict[str, Any]) -> FeatureStore:
    """Return Feast with the three views applied."""
    address = f"{os.environ['REDIS_HOST']}:{os.environ['REDIS_PORT']}"
    store = FeatureStore(
        config=RepoConfig(
            project=name,
            provider="local",
            registry=str(folder / f"{uuid4().hex}.db"),
            offline_store={
                "type": "postgres",
                "host": os.environ["FEATURE_STORE_DB_HOST"],
                "port": os.environ["FEATURE_STORE_DB_PORT"],
                "database": os.environ["FEATURE_STORE_DB_NAME"],
                "user": os.environ["FEATURE_STORE_DB_USER"],
                "password": os.environ["FEATURE_STORE_DB_PASSWORD"],
                "db_schema": name,
                "sslmode": "prefer",
            },
            online_store={
                **online_store,
                "connection_string": f"{address},password={os.environ['REDIS_PASSWORD']}",
            },
            materialization={"online_write_batch_size": BATCH_ROWS},
            entity_key_serialization_version=3,
        )
    )
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    kinds = {"customer_id": Int64} | dict.fromkeys(INTEGERS, Int64)
    kinds |= dict.fromkeys(DOUBLES, Float64) | dict.fromkeys(TEXTS, String)
    views = [
        FeatureView(
            name=view,
            entities=[customer],
            ttl=timedelta(days=1),
            schema=[Field(name=column, dtype=kind) for column, kind in kinds.items()],
            source=PostgreSQLSource(
                name=view,
                table=f"{name}.{view}",
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
            ),
        )
        for view in VIEWS
    ]
    store.apply([customer, *views])
    return store


def main(who: str, name: str, folder: str) -> None:
    """Materialize in this process and print its seconds and peak memory as JSON."""
    from materialize import materialize  # noqa: PLC0415 (on the path of this process alone)

    store = feature_store(name, Path(folder), STORES[who])
    with peak_memory() as peak:
        began = time.perf_counter()
        if who == "ours":
            materialize(store, END, None)
        else:
            store.materialize(END - timedelta(days=1), END)
        seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "megabytes": peak.megabytes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
