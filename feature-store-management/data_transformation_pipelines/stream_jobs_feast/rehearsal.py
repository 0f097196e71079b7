"""A stream of one's own beside the real one: topics, keys, tables and made-up events."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import numpy as np
import pandas as pd
import redis
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from psycopg import sql

from data_source_connectors.database_connector import Connection, connect
from data_source_connectors.kafka_consumer_utils import ensure_topics

from .aggregation_contract import StreamDefinition
from .offline_rows import SQL_TYPES, TABLE_KEY
from .process_transaction_stream import read_all_settings
from .stream_session import Settings
from .stream_settings import StreamSettings
from .transaction_events import encode


@dataclass(frozen=True)
class Rehearsal:
    """The settings of a rehearsal, its environment, and connections to look at what it left."""

    settings: Settings
    environment: dict[str, str]
    database: Connection
    redis: redis.Redis

    @property
    def project(self) -> str:
        """The Feast project whose keys are written."""
        return self.settings.feast.feast_project

    @property
    def schema_prefix(self) -> str:
        """What stands before the names of the rehearsal's schemas."""
        return self.settings.feast.feature_store_schema_prefix

    def processed(self, topic: str = "%") -> int:
        """Return how many messages of a topic (of all: a pattern of `like`) have been made durable."""
        table = f"{self.schema_prefix}stream.partition_position"
        if self.database.execute("select to_regclass(%s)", (table,)).fetchone() == (None,):
            return 0
        statement = sql.SQL(
            "select coalesce(sum(next_offset), 0)::bigint from {} where topic like %s"
        ).format(sql.Identifier(*table.split(".")))
        row = self.database.execute(statement, (topic,)).fetchone()
        return 0 if row is None else int(row[0])


@contextmanager
def rehearse(
    definition: StreamDefinition, *, name: str = "rehearsal", partitions: int = 4
) -> Iterator[Rehearsal]:
    """Yield a stream of its own in the running stack, empty; whatever happens, remove it in the end."""
    unique = f"{name}_{uuid4().hex[:8]}"
    own = {
        "STREAM_TOPIC_PREFIX": f"{unique}.",
        "STREAM_CONSUMER_GROUP": unique,
        "STREAM_TOPIC_PARTITIONS": str(partitions),
        "FEAST_PROJECT": unique,
        "FEATURE_STORE_SCHEMA_PREFIX": f"{unique}_",
    }
    # A broker finds out in this time that a processor was killed; Apache Kafka's default minimum is 6000.
    own["KAFKA_SESSION_TIMEOUT_MS"] = os.environ.get("KAFKA_SESSION_TIMEOUT_MS", "3000")
    before = {variable: os.environ.get(variable) for variable in own}
    os.environ.update(own)
    try:
        settings = read_all_settings()
        # Feast sets these in whoever imports it; in a child they would mix the metrics of processes.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_MULTIPROC")}
    finally:
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value
    password = settings.redis.password
    client = redis.Redis(
        host=settings.redis.host,
        port=settings.redis.port,
        password=password.get_secret_value() if password else None,
        socket_timeout=30,
    )
    with connect(settings.database, application_name=name) as connection:
        try:
            _create_tables(connection, settings, definition)
            ensure_topics(settings.kafka, settings.stream.topics(definition))
            yield Rehearsal(settings, environment, connection, client)
        finally:
            for schema in ("features", "stream"):
                connection.execute(
                    sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(f"{unique}_{schema}"))
                )
            keys = [key for key in client.scan_iter(count=10_000) if key.endswith(unique.encode())]
            for start in range(0, len(keys), 10_000):
                client.delete(*keys[start : start + 10_000])
            client.close()
            _delete_topics(settings, definition)


def _create_tables(connection: Connection, settings: Settings, definition: StreamDefinition) -> None:
    """Create the offline tables as dbt does: the entity, two times, the fields, unique by the first three."""
    features = f"{settings.feast.feature_store_schema_prefix}features"
    connection.execute(sql.SQL("create schema {}").format(sql.Identifier(features)))
    for view in definition.views:
        key = [view.entity_key, *TABLE_KEY]
        columns = dict.fromkeys(TABLE_KEY, "timestamptz") | {view.entity_key: "bigint"}
        columns |= {field.name: SQL_TYPES[field.aggregate] for field in view.fields}
        connection.execute(
            sql.SQL("create table {} ({}, unique ({}))").format(
                sql.Identifier(features, f"fct_{view.view}"),
                sql.SQL(", ").join(
                    sql.SQL("{} {} not null").format(sql.Identifier(column), sql.SQL(kind))
                    for column, kind in columns.items()
                ),
                sql.SQL(", ").join(map(sql.Identifier, key)),
            )
        )


def _delete_topics(settings: Settings, definition: StreamDefinition) -> None:
    admin = KafkaAdminClient(**settings.kafka.client_options())
    try:
        admin.delete_topics([topic.name for topic in settings.stream.topics(definition)])
    except KafkaError as error:
        print(f"the rehearsal's topics stay: {error}")
    finally:
        admin.close()


def made_up_events(
    count: int, days: int, *, customers: int = 5_000, terminals: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Return `count` events over `days` days, the last of them yesterday, in order of time (UTC)."""
    random = np.random.default_rng(seed)
    first = datetime.combine(datetime.now(UTC).date() - timedelta(days=days), datetime.min.time())
    times = np.sort(random.integers(0, days * 86_400_000_000, count)) + np.datetime64(first, "us")
    return pd.DataFrame(
        {
            "transaction_id": np.arange(count),
            "tx_datetime": pd.DatetimeIndex(times, tz="UTC"),
            "customer_id": random.integers(0, customers, count),
            "terminal_id": random.integers(0, terminals, count),
            "tx_amount": random.integers(0, 50_000, count) / 100,
        }
    )


def in_disorder(
    events: pd.DataFrame, *, duplicates: float = 0.1, late: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    """Return the events as they arrive: some twice, some late.

    Of the late ones, one in a hundred is up to half a day late, and so may fall into the next day.
    """
    random = np.random.default_rng(seed)
    count = len(events)
    days = max(1, (events["tx_datetime"].max() - events["tx_datetime"].min()).days)
    place = np.arange(count, dtype=float)
    moved = random.random(count) < late
    far = moved & (random.random(count) < 0.01)
    place[moved] += random.uniform(1, 500, int(moved.sum()))
    place[far] += random.uniform(0, count / days / 2, int(far.sum()))
    again = np.flatnonzero(random.random(count) < duplicates)
    places = np.concatenate([place, place[again] + random.uniform(0, 2_000, len(again))])
    rows = np.concatenate([np.arange(count), again])
    return events.iloc[rows[np.argsort(places, kind="stable")]]


def as_messages(events: pd.DataFrame) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of each event."""
    moments = np.datetime_as_string(events["tx_datetime"].to_numpy("datetime64[us]"), unit="us")
    for transaction_id, moment, customer, terminal, amount in zip(
        events["transaction_id"].tolist(),
        moments.tolist(),
        events["customer_id"].tolist(),
        events["terminal_id"].tolist(),
        events["tx_amount"].tolist(),
        strict=True,
    ):
        yield b"%d" % customer, encode(transaction_id, f"{moment}Z", customer, terminal, amount)


def source_topic(stream: StreamSettings, definition: StreamDefinition) -> str:
    """Return the topic where events arrive."""
    return stream.topic(definition.views[0].topic)
