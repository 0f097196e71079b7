"""What the drill loads, the writers that go on while it backs up, and the checksums it compares."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
import botocore.config
import psycopg
import redis as redis_client
from redis.backoff import NoBackoff
from redis.retry import Retry

DATABASES = ("feature_store", "decisions", "mlflow", "airflow")
# Rows, keys and objects. `demo` is about as much as the demo's stack holds.
SCALES = {
    "demo": {"rows": 600_000, "keys": 60_000, "objects": 200, "object_bytes": 400_000},
    "small": {"rows": 20_000, "keys": 3_000, "objects": 12, "object_bytes": 50_000},
}
BUCKETS = ("mlflow", "data")
PAUSE_SECONDS = 0.001


@dataclass
class Ports:
    """Where the stores answer on this machine, and how to be let in."""

    postgres: int
    redis: int
    objects: int
    password: str
    access_key: str
    secret_key: str

    def database(self, name: str) -> psycopg.Connection[Any]:
        """Return a connection in which each statement is a transaction."""
        return psycopg.connect(
            host="127.0.0.1", port=self.postgres, user="postgres", password=self.password, dbname=name,
            autocommit=True, connect_timeout=5,
        )  # fmt: skip

    def online_store(self) -> redis_client.Redis:
        """Return a client that gives up instead of trying again."""
        return redis_client.Redis(
            port=self.redis, password=self.password, socket_timeout=2, retry=Retry(NoBackoff(), 0)
        )

    def store(self) -> Any:
        """Return an S3 client."""
        return boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.objects}", aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key, region_name="us-east-1",
            config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}),
        )  # fmt: skip


def load(ports: Ports, scale: str) -> None:
    """Fill the databases, the online store and the buckets, the same for every run of a scale."""
    size = SCALES[scale]
    with ports.database("postgres") as connection:
        connection.execute(f"create role backup login replication password '{ports.password}'")
        for name in DATABASES:
            connection.execute(f"create database {name}")
    for name, share in zip(DATABASES, (0.7, 0.2, 0.05, 0.05), strict=True):
        with ports.database(name) as connection:
            connection.execute(
                """create table drill_rows as
                   select g as id, timestamptz '2026-11-01 00:00Z' + g * interval '1 second' as at,
                          md5(g::text) as text_value, sqrt(g) as number,
                          repeat(md5(mod(g, 97)::text), 6) as payload
                   from generate_series(1, %s) g""",
                (int(size["rows"] * share),),
            )
            connection.execute("alter table drill_rows add primary key (id)")
    with ports.database("decisions") as connection:
        connection.execute("create table drill_journal (n bigint primary key, at timestamptz not null)")
    pipeline = ports.online_store().pipeline(transaction=False)
    for number in range(size["keys"]):
        values = {f"f{index}": f"{number * index % 10_007}" for index in range(20)}
        pipeline.hset(f"entity:{number}", mapping=values)
        if number % 2000 == 1999:
            pipeline.execute()
    pipeline.execute()
    store = ports.store()
    for bucket in BUCKETS:
        store.create_bucket(Bucket=bucket)
    for number in range(size["objects"]):
        body = random.Random(number).randbytes(size["object_bytes"])  # noqa: S311 - content, no secret
        store.put_object(
            Bucket=BUCKETS[number % 2], Key=f"models/{number // 10}/part-{number}.bin", Body=body
        )


def table_checksums(ports: Ports) -> dict[str, str]:
    """Return count and order-free hash of every table but the journal, which grows while it is read."""
    found = {}
    for name in DATABASES:
        with ports.database(name) as connection:
            tables = connection.execute(
                """select schemaname || '.' || quote_ident(tablename) from pg_tables
                   where schemaname not in ('pg_catalog', 'information_schema')
                     and tablename <> 'drill_journal'"""
            ).fetchall()
            for (table,) in tables:
                statement = f"select count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) from {table} t"  # noqa: S608
                rows, total = connection.execute(statement).fetchone() or (0, 0)
                found[f"{name}.{table}"] = f"{rows}:{total}"
    return found


def key_checksums(ports: Ports) -> dict[str, str]:
    """Return a hash of every entity of the online store."""
    client = ports.online_store()
    found = {}
    keys = sorted(client.scan_iter("entity:*", count=5000))
    for start in range(0, len(keys), 5000):
        pipeline = client.pipeline(transaction=False)
        for key in keys[start : start + 5000]:
            pipeline.hgetall(key)
        for key, values in zip(keys[start : start + 5000], pipeline.execute(), strict=True):
            found[key.decode()] = hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()
    return found


def object_checksums(ports: Ports) -> dict[str, str]:
    """Return a hash of every object of every bucket."""
    store = ports.store()
    found = {}
    for bucket in BUCKETS:
        for page in store.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", []):
                body = store.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
                found[f"{bucket}/{entry['Key']}"] = hashlib.sha256(body).hexdigest()
    return found


def differing(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return what is missing, changed or new.

    >>> differing({"a": "1", "b": "2"}, {"b": "3", "c": "4"})
    ['a', 'b', 'c']
    """
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@dataclass
class Writer:
    """A thread that writes numbered rows until its store is gone, and keeps when each was acknowledged."""

    write: Callable[[int], Any]
    acknowledged: list[float] = field(default_factory=list)
    ended: str = ""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                self.write(number)
            except Exception as error:
                self.ended = f"{type(error).__name__}: {error}"
                return
            self.acknowledged.append(time.time())
            number += 1
            time.sleep(PAUSE_SECONDS)

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join(10)


def journal_writer(ports: Ports) -> Writer:
    """Return a writer of rows; a commit counts once PostgreSQL has acknowledged it."""
    connection = ports.database("decisions")
    statement = "insert into drill_journal values (%s, clock_timestamp())"
    return Writer(lambda number: connection.execute(statement, (number,)))


def key_writer(ports: Ports) -> Writer:
    """Return a writer of the online store."""
    client = ports.online_store()
    return Writer(lambda number: client.rpush("drill:journal", number))


def kept_writes(ports: Ports) -> int:
    """Return how many of the writer's writes the online store holds."""
    length: Any = ports.online_store().llen("drill:journal")
    return int(length)


def lost_rows(ports: Ports, acknowledged: int) -> int:
    """Return how many acknowledged rows are not there."""
    with ports.database("decisions") as connection:
        statement = "select count(*) from drill_journal where n < %s"
        (there,) = connection.execute(statement, (acknowledged,)).fetchone() or (0,)
    return acknowledged - int(there)


def lost_seconds(acknowledged: list[float], restored: int) -> float:
    """Return over how long a time acknowledged writes were lost, when the first `restored` are there.

    >>> lost_seconds([10.0, 10.5, 11.0], 1), lost_seconds([10.0], 1)
    (1.0, 0.0)
    """
    if restored >= len(acknowledged):
        return 0.0
    return acknowledged[-1] - (acknowledged[restored - 1] if restored else acknowledged[0])
