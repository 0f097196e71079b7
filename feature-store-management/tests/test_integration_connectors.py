"""The connectors against the running stack's PostgreSQL, S3 store and broker, in names of the test's own."""

import logging
import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from kafka import TopicPartition
from psycopg import sql
from pyarrow.fs import FileSelector

from data_source_connectors import preview
from data_source_connectors.connection_config import open_source, read_connection
from data_source_connectors.database_connector import (
    DatabaseSettings,
    DatabaseUnavailableError,
    PostgresSource,
    connect,
    read_query_batches,
)
from data_source_connectors.errors import (
    SourceDataError,
    SourceError,
    SourceRefusedError,
    SourceUnavailableError,
)
from data_source_connectors.kafka_consumer_utils import (
    KafkaSettings,
    Topic,
    ensure_topics,
    open_consumer,
    open_producer,
)
from data_source_connectors.object_store_connector import ObjectStore, ObjectStoreConnection
from data_source_connectors.retry_policy import RetryPolicy

pytestmark = pytest.mark.integration

TEMPLATE = Path(preview.__file__).parent / "config" / "connections.ini.template"
PLANTED = "s3cret-planted-by-the-test"
BUCKET = "data"


@pytest.fixture(scope="module", autouse=True)
def stack() -> None:
    """Fail with the names where the environment of a running stack is not loaded."""
    needed = re.findall(
        r"^\w+ = \$\{([A-Z0-9_]+)\}", TEMPLATE.read_text().split("# Further sources")[0], re.M
    )
    if missing := [name for name in needed if not os.environ.get(name)]:
        pytest.fail(f"load the environment of a running stack first; not set: {', '.join(missing)}")


@pytest.fixture(scope="module")
def postgres() -> PostgresSource:
    source = open_source(read_connection("feature_store", TEMPLATE))
    assert isinstance(source, PostgresSource)
    return source


@pytest.fixture(scope="module")
def store() -> ObjectStore:
    source = open_source(read_connection("object_store", TEMPLATE))
    assert isinstance(source, ObjectStore)
    return source


@pytest.fixture
def prefix(store: ObjectStore) -> Iterator[str]:
    """A folder of the test's own in the bucket."""
    path = f"{BUCKET}/test-connectors-{uuid4().hex[:8]}"
    yield path
    store.filesystem.delete_dir(path)


@pytest.fixture
def schema(postgres: PostgresSource) -> Iterator[str]:
    """A schema of the test's own in the database."""
    name = f"test_connectors_{uuid4().hex[:8]}"
    with connect(postgres.settings, application_name="test") as connection:
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
        yield name
        connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(name)))


def execute(postgres: PostgresSource, statement: str) -> None:
    with connect(postgres.settings, application_name="test") as connection:
        connection.execute(statement)  # type: ignore[arg-type]


# PostgreSQL.


def test_a_table_is_read_with_its_types_and_nulls(postgres: PostgresSource, schema: str) -> None:
    execute(
        postgres,
        f'create table {schema}."Odd ""name" (id bigint, amount numeric(12, 2), day date, at timestamptz, '
        "words text, flag boolean, ratio float8)",
    )
    execute(
        postgres,
        f"""insert into {schema}."Odd ""name" values
        (1, 0.10, '2026-11-21', '2026-11-21 10:00:00.000001+02', 'é', true, 'nan'),
        (null, null, null, null, null, null, null)""",
    )
    [batch] = postgres.read_batches(f'{schema}.Odd "name')
    assert [str(field.type) for field in batch.schema] == [
        "int64", "string", "date32[day]", "timestamp[us, tz=UTC]", "string", "bool", "double",
    ]  # fmt: skip
    first, second = batch.to_pylist()
    assert Decimal(first["amount"]) == Decimal("0.10")
    assert first["at"].isoformat() == "2026-11-21T08:00:00.000001+00:00"
    assert (first["words"], first["flag"], str(first["day"])) == ("é", True, "2026-11-21")
    assert set(second.values()) == {None}
    [two] = postgres.read_batches(f'{schema}.Odd "name', columns=["words", "id"])
    assert two.schema.names == ["words", "id"]


def test_an_empty_table_shows_its_columns(postgres: PostgresSource, schema: str) -> None:
    execute(postgres, f"create table {schema}.nothing (id bigint, amount numeric)")
    [batch] = postgres.read_batches(f"{schema}.nothing")
    assert (batch.num_rows, batch.schema) == (0, pa.schema([("id", pa.int64()), ("amount", pa.string())]))


def test_a_large_query_streams_in_bounded_memory_and_whole(postgres: PostgresSource) -> None:
    query = sql.SQL("select g::bigint as id, repeat('x', 100) as pad from generate_series(1, {}) g").format(
        sql.Literal(600_000)
    )
    pool = pa.default_memory_pool()
    before, peak, total, count = pool.bytes_allocated(), 0, 0, 0
    for batch in read_query_batches(postgres.settings, query, batch_rows=20_000):
        assert batch.num_rows <= 20_000
        total += pc.sum(batch["id"]).as_py()
        count += batch.num_rows
        peak = max(peak, pool.bytes_allocated() - before)
    assert (count, total) == (600_000, 600_000 * 600_001 // 2)
    assert peak < 20 * 2**20


def test_a_reader_that_stops_early_leaves_no_session(postgres: PostgresSource) -> None:
    batches = read_query_batches(postgres.settings, "select generate_series(1, 50000000) as id")
    assert next(batches).num_rows > 0
    batches.close()  # type: ignore[attr-defined]
    with connect(postgres.settings, application_name="test") as connection:
        left = "select count(*) from pg_stat_activity where query like %s and state = 'active'"
        deadline = time.monotonic() + 5
        while connection.execute(left, ["%generate_series(1, 50000000)%"]).fetchone() != (0,):
            assert time.monotonic() < deadline, "the query still runs"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("item", "columns"),
    [
        ("raw.no_such_table", None),
        ("no_such_schema.t", None),
        ("raw.transactions", ["no_such_column"]),
        ("", None),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    postgres: PostgresSource, item: str, columns: list[str] | None
) -> None:
    with pytest.raises(SourceRefusedError, match=r"no_such|no name of a table"):
        list(postgres.read_batches(item, columns=columns))


def test_a_name_cannot_smuggle_a_statement(postgres: PostgresSource, schema: str) -> None:
    execute(postgres, f"create table {schema}.t (id bigint)")
    with pytest.raises(SourceRefusedError, match="does not exist"):
        list(postgres.read_batches(f"{schema}.t; drop table {schema}"))
    with pytest.raises(SourceRefusedError, match="does not exist"):
        list(postgres.read_batches(f"{schema}.t", columns=['id" from x; --']))
    assert len(list(postgres.read_batches(f"{schema}.t"))) == 1


def test_a_slow_query_is_cancelled_and_a_bad_value_named(postgres: PostgresSource) -> None:
    short = postgres.settings.model_copy(update={"statement_timeout_seconds": 1})
    with pytest.raises(SourceUnavailableError, match="statement timeout"):
        list(read_query_batches(short, "select 1 from pg_sleep(20)"))
    with pytest.raises(SourceDataError, match="invalid input syntax"):
        list(read_query_batches(postgres.settings, "select 'x'::bigint"))


def test_a_wrong_password_is_refused_once_and_not_shown(
    postgres: PostgresSource, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = DatabaseSettings(**{**postgres.settings.model_dump(), "password": PLANTED})
    source = PostgresSource(wrong)
    with caplog.at_level(logging.DEBUG), pytest.raises(DatabaseUnavailableError) as error:
        list(source.read_batches("raw.transactions"))
    assert "password authentication failed" in str(error.value)
    shown = "".join(traceback.format_exception(error.value)) + caplog.text + repr(source) + str(wrong)
    assert PLANTED not in shown
    assert "attempt" not in caplog.text


def test_a_server_without_a_certificate_gets_no_password(postgres: PostgresSource) -> None:
    strict = postgres.settings.model_copy(update={"sslmode": "verify-full"})
    with pytest.raises(DatabaseUnavailableError, match=r"SSL was required|root certificate"):
        list(PostgresSource(strict, retries=RetryPolicy(attempts=1)).read_batches("raw.transactions"))


def test_a_server_that_comes_back_is_waited_for(
    postgres: PostgresSource, caplog: pytest.LogCaptureFixture
) -> None:
    gate = socket.socket()
    gate.bind(("127.0.0.1", 0))
    behind_gate = postgres.settings.model_copy(update={"port": gate.getsockname()[1]})
    gate.listen()

    def hang_up_then_pass_on() -> None:
        gate.accept()[0].close()
        client, _ = gate.accept()
        server = socket.create_connection((postgres.settings.host, postgres.settings.port))
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=pass_on, args=(source, target), daemon=True).start()

    thread = threading.Thread(target=hang_up_then_pass_on, daemon=True)
    thread.start()
    retries = RetryPolicy(attempts=3, first_wait_seconds=0.01)
    with connect(behind_gate, application_name="test", retries=retries) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert "attempt 1 of 3 failed" in caplog.text
    thread.join()
    gate.close()


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass on what one end says until either is gone."""
    try:
        while part := source.recv(65536):
            target.sendall(part)
    except OSError:
        return
    finally:
        target.close()


# The object store.


def numbers(start: int, rows: int) -> pa.RecordBatch:
    ids = pa.array(range(start, start + rows), pa.int64())
    return pa.RecordBatch.from_pydict({"id": ids, "pad": pa.array(["x" * 100] * rows)})


SCHEMA = numbers(0, 1).schema


def test_what_is_written_is_listed_and_read(store: ObjectStore, prefix: str) -> None:
    assert store.write_batches(f"{prefix}/b.parquet", SCHEMA, iter([numbers(10, 5), numbers(15, 2)])) == 7
    assert store.write_batches(f"{prefix}/a.parquet", SCHEMA, iter([numbers(0, 10)])) == 10
    listed = list(store.list(prefix))
    assert [found.path for found in listed] == [f"{prefix}/a.parquet", f"{prefix}/b.parquet"]
    assert all(found.size > 0 and found.modified_at.tzinfo for found in listed)
    batches = list(store.read_batches(prefix, batch_rows=4))
    assert max(batch.num_rows for batch in batches) <= 4
    assert [row["id"] for batch in batches for row in batch.to_pylist()] == list(range(17))
    [tail] = store.read_batches(f"{prefix}/b.parquet", columns=["id"], where=pc.field("id") > 15)
    assert tail.to_pydict() == {"id": [16]}
    [nothing] = store.read_batches(prefix, where=pc.field("id") > 99)
    assert (nothing.num_rows, nothing.schema) == (0, SCHEMA)


def test_only_the_columns_and_row_groups_wanted_are_fetched(store: ObjectStore, prefix: str) -> None:
    path = f"{prefix}/groups.parquet"
    rows = [(f"{number:07}" * 30) for number in range(100_000)]
    table = pa.table({"id": pa.array(range(100_000)), "pad": rows})
    with store.filesystem.open_output_stream(path) as stream:
        pq.write_table(table, stream, row_group_size=10_000, compression="none", use_dictionary=False)
    whole = store.filesystem.get_file_info(path).size
    proxy = CountingProxy(store.connection.endpoint_url)
    near = ObjectStore(store.connection.model_copy(update={"endpoint_url": proxy.url}))

    def fetched(**options: Any) -> tuple[int, int]:
        proxy.received = 0
        return sum(batch.num_rows for batch in near.read_batches(path, **options)), proxy.received

    count, every = fetched()
    assert count == 100_000
    assert every >= whole
    count, one_column = fetched(columns=["id"])
    assert count == 100_000
    assert one_column < whole / 10
    count, one_group = fetched(where=pc.field("id") < 5_000)
    assert count == 5_000
    assert one_group < whole / 5
    proxy.stop()


class CountingProxy:
    """Passes on what is asked, counts what comes back."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.received = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection((self.target.hostname, self.target.port))
            threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, count: bool) -> None:
        try:
            while part := source.recv(65536):
                self.received += len(part) if count else 0
                target.sendall(part)
        except OSError:
            pass
        finally:
            target.close()

    def stop(self) -> None:
        self.listener.close()


def test_a_large_file_is_read_in_bounded_memory(store: ObjectStore, prefix: str) -> None:
    path = f"{prefix}/large.parquet"
    with (
        store.filesystem.open_output_stream(path) as stream,
        pq.ParquetWriter(stream, SCHEMA, compression="none", use_dictionary=False) as writer,
    ):
        for start in range(0, 600_000, 20_000):
            writer.write_batch(numbers(start, 20_000), row_group_size=20_000)
    size = store.filesystem.get_file_info(path).size
    pool = pa.default_memory_pool()
    before, peak, count = pool.bytes_allocated(), 0, 0
    for batch in store.read_batches(path, batch_rows=5_000):
        count += batch.num_rows
        peak = max(peak, pool.bytes_allocated() - before)
    assert count == 600_000
    assert peak < size / 4, f"{peak} of {size}"


def test_a_write_that_fails_leaves_the_former_file_and_no_draft(store: ObjectStore, prefix: str) -> None:
    path = f"{prefix}/t.parquet"
    store.write_batches(path, SCHEMA, iter([numbers(0, 3)]))

    def broken() -> Iterator[pa.RecordBatch]:
        yield numbers(0, 50_000)
        raise KeyError("the source broke")

    with pytest.raises(KeyError):
        store.write_batches(path, SCHEMA, broken())
    with pytest.raises(SourceDataError, match="another schema"):
        store.write_batches(path, SCHEMA, iter([pa.RecordBatch.from_pydict({"other": [1]})]))
    assert [row["id"] for batch in store.read_batches(path) for row in batch.to_pylist()] == [0, 1, 2]
    assert [info.path for info in found(store, prefix)] == [path]


def found(store: ObjectStore, prefix: str) -> list[Any]:
    return list(store.filesystem.get_file_info(FileSelector(prefix, recursive=True)))


def test_a_reader_sees_no_file_that_is_being_written(store: ObjectStore, prefix: str) -> None:
    store.write_batches(f"{prefix}/a.parquet", SCHEMA, iter([numbers(0, 3)]))
    seen: list[tuple[int, int]] = []

    def watched() -> Iterator[pa.RecordBatch]:
        for start in range(3):
            yield numbers(start, 1)
            seen.append(
                (sum(len(batch) for batch in store.read_batches(prefix)), len(list(store.list(prefix))))
            )

    store.write_batches(f"{prefix}/b.parquet", SCHEMA, watched())
    assert seen == [(3, 1)] * 3
    assert sum(len(batch) for batch in store.read_batches(prefix)) == 6


def test_a_draft_that_a_killed_writer_left_is_passed_over(store: ObjectStore, prefix: str) -> None:
    store.write_batches(f"{prefix}/a.parquet", SCHEMA, iter([numbers(0, 3)]))
    with store.filesystem.open_output_stream(f"{prefix}/_draft-0-a.parquet") as stream:
        stream.write(b"half a file")
    assert [found.path for found in store.list(prefix)] == [f"{prefix}/a.parquet"]
    assert sum(len(batch) for batch in store.read_batches(prefix)) == 3


def test_broken_and_missing_files_are_told_apart(store: ObjectStore, prefix: str) -> None:
    with store.filesystem.open_output_stream(f"{prefix}/broken.parquet") as stream:
        stream.write(b"PAR1 no Parquet file")
    with pytest.raises(SourceDataError, match="Parquet"):
        list(store.read_batches(f"{prefix}/broken.parquet"))
    with pytest.raises(SourceRefusedError, match=r"none\.parquet"):
        list(store.read_batches(f"{prefix}/none.parquet"))
    with pytest.raises(SourceRefusedError, match="NO_SUCH_BUCKET"):
        list(store.list("no-such-bucket-of-the-test/x"))


def store_with(store: ObjectStore, **settings: Any) -> ObjectStore:
    quick = {"attempts": 1, "connect_timeout_seconds": 1.0, "request_timeout_seconds": 1.0}
    return ObjectStore(ObjectStoreConnection(**{**store.connection.model_dump(), **quick, **settings}))


@pytest.mark.parametrize("key", ["access_key", "secret_key"])
def test_wrong_keys_are_refused_and_not_shown(
    store: ObjectStore, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = store_with(store, **{key: PLANTED})
    shown = repr(wrong) + str(wrong) + repr(wrong.connection)
    with caplog.at_level(logging.DEBUG):
        for use in (
            lambda: list(wrong.list(BUCKET)),
            lambda: list(wrong.read_batches(f"{BUCKET}/x.parquet")),
            lambda: wrong.write_batches(f"{BUCKET}/x.parquet", SCHEMA, iter([])),
        ):
            with pytest.raises(SourceRefusedError) as error:
                use()
            shown += "".join(traceback.format_exception(error.value))
    assert PLANTED not in shown + caplog.text


def test_a_store_that_is_down_silent_or_untrusted_is_left(store: ObjectStore) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    endpoint = urlsplit(store.connection.endpoint_url)
    for settings, expected in (
        ({"endpoint_url": "http://127.0.0.1:1"}, "Could not connect"),
        ({"endpoint_url": f"http://127.0.0.1:{silent.getsockname()[1]}"}, "Timeout was reached"),
        ({"endpoint_url": f"https://{endpoint.netloc}"}, "TLS connect error"),
    ):
        start = time.monotonic()
        with pytest.raises(SourceError, match=expected):
            list(store_with(store, **settings).list(BUCKET))
        assert time.monotonic() - start < 8
    silent.close()


# The broker and the command.


def test_the_kafka_section_reaches_the_broker() -> None:
    settings = read_connection("events", TEMPLATE)
    assert isinstance(settings, KafkaSettings)
    consumer = open_consumer(settings, group=None)
    try:
        assert isinstance(consumer.topics(), set)
    finally:
        consumer.close()


def test_the_preview_shows_a_table_a_file_and_a_refusal(
    store: ObjectStore,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CONNECTIONS_FILE", str(TEMPLATE))
    assert preview.main(["feature_store", "raw.transactions", "--rows", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["transaction_id  int64", "tx_datetime     timestamp[us, tz=UTC]"]
    assert len(lines) == 7 + 1 + 1 + 3
    store.write_batches(f"{prefix}/a.parquet", SCHEMA, iter([numbers(41, 3)]))
    assert preview.main(["object_store", f"{prefix}/a.parquet", "--columns", "id", "--rows", "2"]) == 0
    assert capsys.readouterr().out.split() == ["id", "int64", "id", "41", "42"]
    assert preview.main(["feature_store", "raw.no_such_table"]) == 1
    assert "no_such_table" in capsys.readouterr().err


def test_a_secret_in_a_query_or_reply_of_the_database_is_masked(postgres: PostgresSource) -> None:
    password = postgres.settings.password.get_secret_value()
    query = sql.SQL("select {}::bigint").format(sql.Literal(password))
    with pytest.raises((SourceDataError, psycopg.Error)) as error:
        list(read_query_batches(postgres.settings, query))
    assert password not in str(error.value)


def test_a_partition_paused_half_read_goes_on_when_it_is_resumed() -> None:
    settings, messages = read_connection("events", TEMPLATE), 200
    assert isinstance(settings, KafkaSettings)
    topic = Topic(f"paused-{uuid4().hex[:8]}", partitions=2)
    ensure_topics(settings, [topic])
    one, two = TopicPartition(topic.name, 0), TopicPartition(topic.name, 1)
    producer = open_producer(settings)
    for number in range(messages):
        for at in (one, two):
            producer.send(at.topic, b"%d" % number, partition=at.partition)
    producer.flush()
    producer.close()
    consumer = open_consumer(settings, group=None)
    try:
        consumer.assign([one, two])
        read = {one: 0, two: 0}
        deadline = time.monotonic() + 20
        while sum(read.values()) < 2 * messages and time.monotonic() < deadline:
            for at, records in consumer.poll(timeout_ms=100, max_records=10).items():
                if not any(read.values()):
                    consumer.pause(at)
                read[at] += len(records)
            for paused in consumer.paused():
                # Nothing else will come any more.
                if sum(read.values()) - read[paused] == messages:
                    consumer.resume(paused)
        assert read == {one: messages, two: messages}
    finally:
        consumer.close()
