"""The stream processor on the running stack: outages, rebalances, crashes, poison, racing materialization."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from common_test_utils import ROOT_DIR, require_stack
from kafka import TopicPartition
from psycopg import sql

from data_source_connectors.kafka_consumer_utils import open_consumer, open_producer
from data_transformation_pipelines.python_scripts_feast.landing_files import (
    TRANSACTIONS_SCHEMA,
    file_name,
)
from data_transformation_pipelines.stream_jobs_feast import chaos
from data_transformation_pipelines.stream_jobs_feast.aggregation_contract import (
    StreamDefinition,
    load_definition,
)
from data_transformation_pipelines.stream_jobs_feast.batch_oracle import compare
from data_transformation_pipelines.stream_jobs_feast.chaos import send_all, start_processor
from data_transformation_pipelines.stream_jobs_feast.process_transaction_stream import process
from data_transformation_pipelines.stream_jobs_feast.rehearsal import (
    Rehearsal,
    in_disorder,
    made_up_events,
    rehearse,
    source_topic,
)
from data_transformation_pipelines.stream_jobs_feast.stream_metrics import StreamMetrics
from data_transformation_pipelines.stream_jobs_feast.stream_session import Session, Settings, StalledError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

DEFINITION = load_definition()
PATIENCE_SECONDS = 90
DAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)


@pytest.fixture
def rehearsal() -> Iterator[Rehearsal]:
    require_stack()
    if not os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        pytest.fail("load the environment of a running stack first; not set: KAFKA_BOOTSTRAP_SERVERS")
    with rehearse(DEFINITION, name="test", partitions=2) as made:
        yield made


def send(rehearsal: Rehearsal, events: pd.DataFrame) -> None:
    send_all(rehearsal.settings.kafka, source_topic(rehearsal.settings.stream, DEFINITION), events)


def catch_up(
    rehearsal: Rehearsal, definition: StreamDefinition = DEFINITION, group: str | None = None
) -> StreamMetrics:
    settings, metrics = rehearsal.settings, StreamMetrics()
    if group is not None:
        settings = replace(settings, stream=settings.stream.model_copy(update={"consumer_group": group}))
    process(settings, definition, metrics, threading.Event(), until_caught_up=True)
    return metrics


def assert_equal_to_the_oracle(rehearsal: Rehearsal, events: pd.DataFrame) -> None:
    found = compare(rehearsal.redis, events, rehearsal.project)
    assert found["entities"] > 0
    assert found["mismatches"] == 0, found


def wait_until(true: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < PATIENCE_SECONDS, f"waited in vain until {what}"
        time.sleep(0.05)


@contextmanager
def processor(
    settings: Settings, metrics: StreamMetrics, definition: StreamDefinition = DEFINITION
) -> Iterator[threading.Event]:
    """Run a processor in a thread; its error is the test's."""
    stop, errors = threading.Event(), []

    def run() -> None:
        try:
            process(settings, definition, metrics, stop, until_caught_up=False)
        except BaseException as error:  # raised below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert not errors, errors


class Proxy:
    """A way to a server that can be cut; with `socks`, the client says to which (SOCKS 5)."""

    def __init__(self, host: str = "", port: int = 0, *, socks: bool = False) -> None:
        self._target, self._socks = (host, port), socks
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.restore()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def restore(self) -> None:
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        self._call(self._cut())

    async def _cut(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            host, port = await self._greet(reader, writer) if self._socks else self._target
            there_reader, there_writer = await asyncio.open_connection(host, port)
            self._writers.add(there_writer)
            await asyncio.gather(self._pipe(reader, there_writer), self._pipe(there_reader, writer))
        self._writers.discard(writer)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
        methods = (await reader.readexactly(2))[1]
        await reader.readexactly(methods)
        writer.write(b"\x05\x00")
        kind = (await reader.readexactly(4))[3]
        length = 4 if kind == 1 else (await reader.readexactly(1))[0]
        address = await reader.readexactly(length)
        host = ".".join(map(str, address)) if kind == 1 else address.decode()
        port = int.from_bytes(await reader.readexactly(2))
        writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        return host, port

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@pytest.fixture
def proxies(rehearsal: Rehearsal) -> Iterator[dict[str, Proxy]]:
    settings = rehearsal.settings
    made = {
        "redis": Proxy(settings.redis.host, settings.redis.port),
        "database": Proxy(settings.database.host, settings.database.port),
        "broker": Proxy(socks=True),
    }
    yield made
    for proxy in made.values():
        proxy.close()


def test_outages_of_redis_database_and_broker_are_waited_out(rehearsal: Rehearsal, proxies: dict[str, Proxy]):
    """Each is cut while events come in, and what came during the outage is there after it."""
    events = in_disorder(made_up_events(2_000, 2))
    parts = np.array_split(np.arange(len(events)), 4)
    settings = replace(
        rehearsal.settings,
        redis=rehearsal.settings.redis.model_copy(
            update={"host": "127.0.0.1", "port": proxies["redis"].port}
        ),
        database=rehearsal.settings.database.model_copy(
            update={"host": "127.0.0.1", "port": proxies["database"].port}
        ),
        kafka=rehearsal.settings.kafka.model_copy(
            update={"proxy_url": f"socks5://127.0.0.1:{proxies['broker'].port}"}
        ),
    )
    metrics, sent = StreamMetrics(), 0

    def everything_is_durable() -> bool:
        return rehearsal.processed(source_topic(settings.stream, DEFINITION)) == sent

    with processor(settings, metrics):
        for proxy, part in zip([None, *proxies.values()], parts, strict=True):
            if proxy is not None:
                proxy.cut()
            send(rehearsal, events.iloc[part])
            sent += len(part)
            if proxy is not None:
                time.sleep(1.5)
                assert not everything_is_durable()
                proxy.restore()
            wait_until(everything_is_durable, "all events are durable")
    catch_up(rehearsal)
    assert 1 <= sum(metrics.outages.values.values()) <= 30, metrics.outages.values
    assert_equal_to_the_oracle(rehearsal, events)


@pytest.mark.parametrize("error", [StalledError("made up"), redis.ConnectionError("made up")])
def test_a_session_that_ends_amid_a_fetch_makes_nothing_durable_that_it_did_not_forward(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    events = made_up_events(2_000, 1)
    send(rehearsal, events)
    untroubled, chunks = Session._process_chunk, 0

    def fails_once(session: Session, records: list[Any]) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 3:
            raise error
        untroubled(session, records)

    monkeypatch.setattr(Session, "_process_chunk", fails_once)
    metrics = catch_up(rehearsal)
    assert sum(metrics.outages.values.values()) == 1
    assert_equal_to_the_oracle(rehearsal, events)


def test_who_catches_up_waits_for_what_was_forwarded_also_while_the_log_does_not_show_it_yet(
    rehearsal: Rehearsal,
):
    events = made_up_events(200, 1)
    send(rehearsal, events)
    catch_up(rehearsal)
    later, earlier = (
        sql.SQL("update {} set end_offset = end_offset {} 1").format(
            sql.Identifier(f"{rehearsal.schema_prefix}stream", "forwarded_position"), sql.SQL(sign)
        )
        for sign in "+-"
    )
    assert rehearsal.database.execute(later).rowcount > 0
    caught_up = threading.Thread(target=catch_up, args=(rehearsal,), daemon=True)
    caught_up.start()
    caught_up.join(5)
    assert caught_up.is_alive(), "it did not wait"
    rehearsal.database.execute(earlier)
    caught_up.join(PATIENCE_SECONDS)
    assert not caught_up.is_alive()
    assert_equal_to_the_oracle(rehearsal, events)


def test_processors_share_the_partitions_and_hand_them_over(rehearsal: Rehearsal):
    events = in_disorder(made_up_events(1_500, 2))
    parts = [events.iloc[part] for part in np.array_split(np.arange(len(events)), 3)]
    first, second = StreamMetrics(), StreamMetrics()
    with processor(rehearsal.settings, second) as stop_second:
        send(rehearsal, parts[0])
        wait_until(lambda: len(second.lag.values) == 4, "one processor has all partitions")
        with processor(rehearsal.settings, first):
            wait_until(lambda: len(first.lag.values) == len(second.lag.values) == 2, "each has its share")
            assert not first.lag.values.keys() & second.lag.values.keys()
            send(rehearsal, parts[1])
            stop_second.set()
            send(rehearsal, parts[2])
            topic = source_topic(rehearsal.settings.stream, DEFINITION)
            wait_until(lambda: rehearsal.processed(topic) == len(events), "the other has finished all")
    catch_up(rehearsal)
    assert_equal_to_the_oracle(rehearsal, events)


def test_a_processor_that_is_killed_again_and_again_loses_nothing():
    require_stack()
    report = chaos.run(6_000, 3)
    assert report["kills"] == 3
    assert report["duplicates"] > 0
    assert report["online"]["entities"] > 1_000
    wrong = [report["online"], *report["offline"].values()]
    assert [each["mismatches"] for each in wrong] == [0, 0, 0]


def test_another_definition_leaves_other_totals(rehearsal: Rehearsal):
    """The comparison can fail: here the day begins five hours early."""
    events = made_up_events(300, 2, customers=50, terminals=50)
    send(rehearsal, events)
    wrong = DEFINITION.model_copy(
        update={"window": DEFINITION.window.model_copy(update={"utc_offset_hours": 5})}
    )
    catch_up(rehearsal, wrong)
    assert compare(rehearsal.redis, events, rehearsal.project)["mismatches"] > 20


def message(number: int, moment: datetime, customer: int = 1, **change: Any) -> tuple[bytes, bytes]:
    content = {
        "transaction_id": number,
        "tx_datetime": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "customer_id": customer,
        "terminal_id": 9,
        "tx_amount": 1.25,
    }
    return b"%d" % customer, json.dumps(content | change).encode()


def publish(
    rehearsal: Rehearsal, messages: list[tuple[bytes | None, bytes | None]], timestamp_ms: int
) -> None:
    """Send messages to one partition, which arrive a millisecond after one another."""
    producer = open_producer(rehearsal.settings.kafka)
    topic = source_topic(rehearsal.settings.stream, DEFINITION)
    for number, (key, value) in enumerate(messages):
        sent = producer.send(topic, key=key, value=value, partition=0, timestamp_ms=timestamp_ms + number)
        sent.get(timeout=30)
    producer.close()


def read_topic(rehearsal: Rehearsal, topic: str) -> list[Any]:
    consumer = open_consumer(rehearsal.settings.kafka, group=None)
    at = TopicPartition(topic, 0)
    consumer.assign([at])
    consumer.seek(at, 0)
    records: list[Any] = []
    wait_until(
        lambda: (
            records.extend(record for some in consumer.poll(timeout_ms=200).values() for record in some)
            or (consumer.highwater(at) is not None and consumer.position(at) >= consumer.highwater(at))
        ),
        "the topic is read",
    )
    consumer.close()
    return records


def test_poison_goes_to_the_dead_letters_with_its_reason(rehearsal: Rehearsal):
    noon = DAY + timedelta(hours=12)
    key, good = message(1, noon)
    messages: list[tuple[bytes | None, bytes | None]] = [
        (key, good),
        (b"1", b"{not json"),
        message(2, noon, tx_amount=-1),
        message(3, noon, surprise=1),
        (b"1", good.replace(b"1.25", b"NaN")),
        (b"77", message(4, noon)[1]),
        (None, message(5, noon)[1]),
        (b"1", None),
        (b"1", good + b" " * 1_000_000),
        message(6, noon + timedelta(days=30)),
        message(7, noon - timedelta(days=20)),
        message(8, noon + timedelta(seconds=1)),
    ]
    now = int(time.time() * 1_000)
    publish(rehearsal, messages, now)
    metrics = catch_up(rehearsal)
    letters = read_topic(rehearsal, rehearsal.settings.stream.dead_letter_topic(DEFINITION))
    by_offset = {int(dict(letter.headers)["offset"]): letter for letter in letters}
    reasons = {offset: dict(letter.headers)["reason"].decode() for offset, letter in by_offset.items()}
    assert {offset: reason.split(":")[0] for offset, reason in reasons.items()} == {
        1: "not_json",
        2: "schema",
        3: "schema",
        4: "not_json",
        5: "wrong_key",
        6: "wrong_key",
        7: "empty",
        8: "oversized",
        9: "future",
        10: "too_late",
    }
    assert "tx_amount" in reasons[2]
    assert "surprise" in reasons[3]
    for offset, letter in by_offset.items():
        headers = dict(letter.headers)
        assert headers["topic"].decode() == source_topic(rehearsal.settings.stream, DEFINITION)
        assert (int(headers["partition"]), letter.key) == (0, messages[offset][0])
        assert letter.value == messages[offset][1]
    counted = {why: count for (_, why), count in metrics.rejected.values.items()}
    assert counted == Counter(reason.split(":")[0] for reason in reasons.values())
    good_events = pd.DataFrame(
        {
            "transaction_id": [1, 8],
            "tx_datetime": pd.DatetimeIndex([noon, noon + timedelta(seconds=1)]),
            "customer_id": 1,
            "terminal_id": 9,
            "tx_amount": 1.25,
        }
    )
    assert_equal_to_the_oracle(rehearsal, good_events)


def keys_of(rehearsal: Rehearsal) -> list[bytes]:
    return [key for key in rehearsal.redis.scan_iter(count=1_000) if key.endswith(rehearsal.project.encode())]


def offline_rows(rehearsal: Rehearsal, view: str) -> list[tuple[Any, ...]]:
    return rehearsal.database.execute(
        sql.SQL("select * from {} order by created_timestamp, event_timestamp").format(
            sql.Identifier(f"{rehearsal.schema_prefix}features", f"fct_{view}")
        )
    ).fetchall()


def test_offline_rows_say_what_was_known_when_and_a_second_reading_changes_nothing(rehearsal: Rehearsal):
    """By hand: 10.00 yesterday, 2.00 today, 0.50 yesterday but late, 4.00 before the 2.00; a duplicate."""
    today = DAY + timedelta(days=1)
    arrival = today.replace(hour=0, minute=0, second=1)
    parts = [
        message(1, today - timedelta(hours=1), tx_amount=10.0),
        message(2, today + timedelta(microseconds=700), tx_amount=2.0),
        message(3, today - timedelta(minutes=30), tx_amount=0.5),
        message(4, today + timedelta(microseconds=300), tx_amount=4.0),
        message(4, today + timedelta(microseconds=300), tx_amount=4.0),
    ]
    publish(rehearsal, parts, int(arrival.timestamp() * 1_000))
    metrics = catch_up(rehearsal)
    assert metrics.duplicates.values["customer_today",] == 1
    assert metrics.late.values["customer_today",] == 1
    one_us, number = timedelta(microseconds=1), (today - datetime(1970, 1, 1, tzinfo=UTC)).days
    arrived = [arrival + timedelta(milliseconds=n) + one_us for n in range(4)]
    # Event and created timestamp, customer, count, sum, day.
    expected = [
        (today - timedelta(hours=1) + one_us, arrived[0], 1, 1, 10.0, number - 1),
        (today + timedelta(microseconds=701), arrived[1], 1, 1, 2.0, number),
        (today - timedelta(minutes=30) + one_us, arrived[2], 1, 2, 10.5, number - 1),
        (today + timedelta(microseconds=701), arrived[3], 1, 2, 6.0, number),
    ]
    customers, terminals = (
        offline_rows(rehearsal, "customer_today"),
        offline_rows(rehearsal, "terminal_today"),
    )
    assert customers == expected
    # The forwarded message keeps its time of arrival, so both views know of a transaction from the same
    # moment.
    assert terminals == [(*row[:2], 9, row[3], row[5]) for row in expected]

    rehearsal.redis.delete(
        *(key for key in rehearsal.redis.scan_iter() if key.endswith(rehearsal.project.encode()))
    )
    catch_up(rehearsal, group=f"{rehearsal.project}_again")
    assert offline_rows(rehearsal, "customer_today") == customers
    assert offline_rows(rehearsal, "terminal_today") == terminals
    assert len(keys_of(rehearsal)) == 2


def test_a_restart_brings_back_what_redis_has_lost(rehearsal: Rehearsal):
    events = made_up_events(200, 1, customers=20, terminals=20)
    send(rehearsal, events)
    catch_up(rehearsal)
    rehearsal.redis.delete(*keys_of(rehearsal))
    metrics = catch_up(rehearsal)
    assert ("customer_today",) not in metrics.events.values
    assert_equal_to_the_oracle(rehearsal, events)


def test_a_racing_materialization_never_wins_over_the_stream(rehearsal: Rehearsal):
    """It writes rows of the first half of the day, some of the very times of the stream's; all stay whole.

    What it writes has a day below zero, and counts and sums to tell it by.
    """
    from fast_redis_writer import RedisRowWriter  # noqa: PLC0415

    customers, events = 40, in_disorder(made_up_events(3_000, 1, customers=40, terminals=40))
    view = DEFINITION.views[0]
    fields = [
        ("customer_tx_count_today", "int64"),
        ("customer_tx_amount_sum_today", "float64"),
        ("customer_today_day", "int64"),
    ]
    writer = RedisRowWriter(rehearsal.redis, rehearsal.project, view.view, view.entity_key, fields)
    over, halves = threading.Event(), []
    times = events["tx_datetime"].to_numpy("datetime64[us]").astype(np.int64)

    def materialize() -> None:
        random = np.random.default_rng(1)
        while not over.is_set():
            ids = np.arange(customers)
            moments = random.choice(times, customers) - random.integers(0, 2, customers)
            marks = random.integers(1, 1_000, customers)
            writer.write(
                ids,
                np.minimum(moments, times.min() + 43_200_000_000),
                {fields[0][0]: -marks, fields[1][0]: -marks / 1.0, fields[2][0]: np.full(customers, -1)},
                ties="newer",
            )

    def watch() -> None:
        from feast.protos.feast.types.Value_pb2 import Value  # noqa: PLC0415

        while not over.is_set():
            for key in rehearsal.redis.scan_iter(count=1_000):
                if key.endswith(rehearsal.project.encode()) and b"customer_id" in key:
                    held = rehearsal.redis.hgetall(key)
                    values = [
                        Value.FromString(value) for name, value in held.items() if not name.startswith(b"_ts")
                    ]
                    whole = sorted(value.int64_val for value in values if value.HasField("int64_val"))
                    amount = next(
                        (value.double_val for value in values if value.HasField("double_val")), None
                    )
                    materialized = whole[:1] and whole[0] < 0
                    if len(held) != 4 or (materialized and (whole[0] != amount and whole[1:] != [-1])):
                        halves.append(held)

    threads = [threading.Thread(target=work, daemon=True) for work in (materialize, watch)]
    for thread in threads:
        thread.start()
    send(rehearsal, events)
    catch_up(rehearsal)
    time.sleep(0.2)
    over.set()
    for thread in threads:
        thread.join(30)
    assert not halves
    assert_equal_to_the_oracle(rehearsal, events)


def test_feasts_own_push_gives_the_same_bytes(rehearsal: Rehearsal, tmp_path: Path):
    from feast import FeatureStore  # noqa: PLC0415

    from data_sources import customer_today_push, terminal_today_push  # noqa: PLC0415
    from entities import customer, terminal  # noqa: PLC0415
    from feature_views.customer_today import customer_today  # noqa: PLC0415
    from feature_views.terminal_today import terminal_today  # noqa: PLC0415

    events = in_disorder(made_up_events(300, 1, customers=30, terminals=30))
    send(rehearsal, events)
    catch_up(rehearsal)
    assert_equal_to_the_oracle(rehearsal, events)
    rows = {
        "customer_today_push": offline_rows(rehearsal, "customer_today"),
        "terminal_today_push": offline_rows(rehearsal, "terminal_today"),
    }
    rehearsal.redis.delete(
        *(key for key in rehearsal.redis.scan_iter() if key.endswith(rehearsal.project.encode()))
    )

    text = (ROOT_DIR / "feast_repository" / "feature_store.yaml").read_text()
    registry = text.index("registry:"), text.index("offline_store:")
    configuration = tmp_path / "feature_store.yaml"
    configuration.write_text(
        text[: registry[0]].replace("project: mlops_platform", f"project: {rehearsal.project}")
        + f"registry: {tmp_path / 'registry.db'}\n\n"
        + text[registry[1] :]
    )
    store = FeatureStore(fs_yaml_file=configuration)
    store.apply(
        [customer, terminal, customer_today_push, terminal_today_push, customer_today, terminal_today]
    )
    for source, pushed in rows.items():
        view = customer_today if source.startswith("customer") else terminal_today
        names = [
            "event_timestamp",
            "created_timestamp",
            view.entity_columns[0].name,
            *(f.name for f in view.features),
        ]
        # In order of arrival, as the processor does.
        for start in range(0, len(pushed), 100):
            store.push(source, pd.DataFrame(pushed[start : start + 100], columns=names))
    assert_equal_to_the_oracle(rehearsal, events)


def test_the_commands_replay_a_day_and_keep_its_totals(rehearsal: Rehearsal, tmp_path: Path):
    events = made_up_events(400, 1, customers=40, terminals=40)
    day = events["tx_datetime"].iloc[0].date()
    folder = tmp_path / "landing" / "transactions"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pandas(events, preserve_index=False)
        .select(TRANSACTIONS_SCHEMA.names)
        .cast(TRANSACTIONS_SCHEMA),
        folder / file_name("transactions", day),
        write_page_checksum=True,
    )
    rehearsal.environment["DATA_DIR"] = str(tmp_path)
    log_path = tmp_path / "processor.log"
    with log_path.open("wb") as log:
        running = start_processor(rehearsal, log)
        done = subprocess.run(
            [sys.executable, "-m", "data_transformation_pipelines.stream_jobs_feast.replay_transactions",
             "--date", str(day), "--speed", "100000"],
            cwd=ROOT_DIR, env=rehearsal.environment, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"sent 400 transactions of {day}" in done.stdout
        wait_until(lambda: rehearsal.processed() == 800, "the day is processed")
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0, log_path.read_text()
        assert start_processor(rehearsal, log, "--until-caught-up").wait(90) == 0, log_path.read_text()
    assert_equal_to_the_oracle(rehearsal, events)


def test_a_missing_table_is_named(rehearsal: Rehearsal, tmp_path: Path):
    rehearsal.database.execute(f"drop table {rehearsal.schema_prefix}features.fct_terminal_today")
    with (tmp_path / "log").open("wb") as log:
        assert start_processor(rehearsal, log, "--until-caught-up").wait(60) == 1
    text = (tmp_path / "log").read_text()
    assert "fct_terminal_today" in text
    assert "run_dbt_for_feast.sh" in text


def test_redis_must_not_be_reachable_for_the_test_of_outages_to_mean_anything(proxies: dict[str, Proxy]):
    client = redis.Redis(
        "127.0.0.1",
        proxies["redis"].port,
        password=os.environ["REDIS_PASSWORD"],
        socket_timeout=5,
        retry=None,
    )
    assert client.ping()
    proxies["redis"].cut()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    proxies["redis"].restore()
    assert client.ping()
    client.close()
