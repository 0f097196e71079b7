"""The online store on a running Redis: Feast's bytes by every door, whole rows, and the newest stays."""

import asyncio
import functools
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import redis
from common_test_utils import require_stack
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.types import Array, Float64, Int64, String, UnixTimestamp
from feast.utils import _convert_arrow_to_proto
from feast.value_type import ValueType

from fast_redis_layout import FIRST_TIME_US, LAST_TIME_US, field_name, time_field
from fast_redis_online_store import FastRedisOnlineStore, FastRedisOnlineStoreConfig
from fast_redis_writer import Encoded, RedisRowWriter, ScriptCaller, bulk_strings, encode_items

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 21, 6, 30, 15, 123_456, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
FIELDS = [("a", "int64"), ("b", "float64"), ("c", "string")]
Hashes = dict[bytes, dict[bytes, bytes]]


@pytest.fixture
def project() -> Iterator[str]:
    """A project of the test's own, whose keys are removed afterwards."""
    require_stack()
    name = f"test_{uuid4().hex[:12]}"
    yield name
    client = connect()
    if keys := list(stored(client, name)):
        client.delete(*keys)
    client.close()


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    require_stack()
    connected = connect()
    yield connected
    connected.close()


def connect(name: str | None = None) -> redis.Redis:
    return redis.Redis(
        client_name=name,
        host=os.environ["REDIS_HOST"],
        port=int(os.environ["REDIS_PORT"]),
        password=os.environ["REDIS_PASSWORD"],
        socket_timeout=30,
    )


def stored(client: redis.Redis, project: str) -> Hashes:
    keys = [key for key in client.scan_iter(count=10_000) if key.endswith(project.encode())]
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hgetall(key)
        return dict(zip(keys, pipeline.execute(), strict=True))


def connection_string() -> str:
    return f"{os.environ['REDIS_HOST']}:{os.environ['REDIS_PORT']},password={os.environ['REDIS_PASSWORD']}"


def microseconds(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


def row_writer(client: redis.Redis, project: str) -> RedisRowWriter:
    return RedisRowWriter(client, project, "view", "customer_id", FIELDS)


def write(writer: RedisRowWriter, times: Iterable[int], mark: int, ties: Any, ids: Any = None) -> int:
    """Write rows all of whose fields say `mark`, so that a mixed row shows."""
    at = np.array(list(times), dtype=np.int64)
    rows = len(at)
    columns = {"a": np.full(rows, mark), "b": np.full(rows, float(mark)), "c": np.array([str(mark)] * rows)}
    return writer.write(np.arange(rows) if ids is None else ids, at, columns, ties)


def marks(rows: Hashes) -> list[int]:
    """Return what each row says, after a check that its fields agree."""
    found = []
    for row in rows.values():
        text = row[field_name("view", "c")][2:].decode()
        expected = written_alone(int(text))
        assert {name: value for name, value in row.items() if name != time_field("view")} == expected
        found.append(int(text))
    return found


def encoded(
    project: str, entity_id: int, time: int, fields: Any = (), columns: Any = None
) -> tuple[bytes, list[bytes]]:
    """Return the key of one row and its values, the time first."""
    nobody = cast(redis.Redis, None)
    rows = RedisRowWriter(nobody, project, "view", "id", fields)
    [chunk] = rows.encode(np.array([entity_id]), np.array([time]), columns or {})
    [key] = bulk_strings(chunk.keys)
    return key, bulk_strings(chunk.values)


@functools.cache
def written_alone(mark: int) -> dict[bytes, bytes]:
    columns = {"a": np.array([mark]), "b": np.array([float(mark)]), "c": np.array([str(mark)])}
    _, [_, *values] = encoded("", 0, 0, FIELDS, columns)
    return dict(zip([field_name("view", name) for name, _ in FIELDS], values, strict=True))


def test_the_newest_row_stays_whatever_comes_after_it(client: redis.Redis, project: str):
    """Every pair of times, before and after the epoch, a microsecond and eight thousand years apart."""
    edges = [FIRST_TIME_US, -1_000_000, -1, 0, 1, 999_999, 1_000_000, microseconds(NOW), LAST_TIME_US]
    drawn = random.Random(7)
    times = edges + [drawn.randrange(FIRST_TIME_US, LAST_TIME_US) for _ in range(15)]
    times += [time + 1 for time in times[:-1] if time + 1 <= LAST_TIME_US]
    pairs = list(itertools.product(times, times))
    writer = row_writer(client, project)
    for ties, wins in (
        ("newer", lambda old, new: new > old),
        ("same_or_newer", lambda old, new: new >= old),
        ("always", lambda old, new: True),
    ):
        assert write(writer, [old for old, _ in pairs], 1, "always") == len(pairs)
        assert write(writer, [new for _, new in pairs], 2, ties) == sum(wins(*pair) for pair in pairs)
        after = stored(client, project)
        ids = {int.from_bytes(key[-len(project) - 8 : -len(project)], "little"): key for key in after}
        said = marks({ids[at]: after[ids[at]] for at in range(len(pairs))})
        assert said == [2 if wins(*pair) else 1 for pair in pairs]


def test_racing_writers_leave_the_newest_row_whole(client: redis.Redis, project: str):
    """Six writers, each row's times in an order of its own; one of them goes through Feast's door."""
    rows, rounds, writers = 300, 12, 6
    online = FastRedisOnlineStore()
    view, config = batch_view(), store_config(project)
    failures: list[BaseException] = []

    def race(number: int) -> None:
        try:
            order = random.Random(number)
            own = connect()
            for _ in range(rounds):
                offsets = [order.randrange(1, 10_000) for _ in range(rows)]
                ids = np.array(order.sample(range(rows), rows))
                times = [microseconds(NOW) + offset for offset in offsets]
                if number == 0:
                    data = proto_rows(view, ids, times, [str(offset) for offset in offsets])
                    online.online_write_batch(config, view, data, None)
                else:
                    columns = {"c": np.array([str(offset) for offset in offsets])}
                    RedisRowWriter(own, project, "view", "customer_id", [("c", "string")]).write(
                        ids, np.array(times), columns, "newer"
                    )
                with lock:
                    for at, offset in zip(ids.tolist(), offsets, strict=True):
                        newest[at] = max(newest.get(at, 0), offset)
            own.close()
        except BaseException as error:
            failures.append(error)
            raise

    newest: dict[int, int] = {}
    lock = threading.Lock()
    threads = [threading.Thread(target=race, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    after = stored(client, project)
    assert len(after) == rows
    for key, row in after.items():
        at = int.from_bytes(key[-len(project) - 8 : -len(project)], "little")
        offset = int(row[field_name("view", "c")][2:])
        assert offset == newest[at]
        assert row[time_field("view")] == encoded("", 0, microseconds(NOW) + offset)[1][0]


def batch_view(name: str = "view", dtype: Any = String, source: Any = None) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)],
        schema=[Field(name="customer_id", dtype=Int64), Field(name="c", dtype=dtype)],
        source=source or FileSource(name="file", path="none.parquet", timestamp_field="event_timestamp"),
    )


def store_config(project: str, **settings: Any) -> Any:
    return SimpleNamespace(
        project=project,
        entity_key_serialization_version=3,
        registry=SimpleNamespace(enable_online_feature_view_versioning=False),
        online_store=FastRedisOnlineStoreConfig(connection_string=connection_string(), **settings),
    )


def proto_rows(
    view: FeatureView, ids: Any, times: list[int], values: list[Any], kind: Any = None
) -> list[Any]:
    batch = pa.record_batch(
        {
            "customer_id": pa.array(ids, pa.int64()),
            "c": pa.array(values, kind or pa.string()),
            "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )
    return _convert_arrow_to_proto(batch, view, {"customer_id": ValueType.INT64})


@pytest.mark.parametrize("stream", [False, True])
def test_ties_are_settled_as_the_architecture_says(client: redis.Redis, project: str, stream: bool):
    """A push replaces a row of its time. So does a materialization, but where a stream feeds the view."""
    file = FileSource(name="file", path="none.parquet", timestamp_field="event_timestamp")
    view = batch_view(source=PushSource(name="push", batch_source=file) if stream else file)
    store, config, at = FastRedisOnlineStore(), store_config(project), [microseconds(NOW)]

    def says() -> bytes:
        [row] = stored(client, project).values()
        return row[field_name("view", "c")][2:]

    def materialized(count: int) -> None:
        counts.append(count)

    counts: list[int] = []
    store.online_write_batch(config, view, proto_rows(view, [1], at, ["first"]), None)
    store.online_write_batch(config, view, proto_rows(view, [1], at, ["pushed"]), None)
    assert says() == b"pushed"
    store.online_write_batch(config, view, proto_rows(view, [1], at, ["materialized"]), materialized)
    assert says() == (b"pushed" if stream else b"materialized")
    assert counts == [1]
    asyncio.run(
        store.online_write_batch_async(config, view, proto_rows(view, [1], [at[0] + 1], ["later"]), None)
    )
    store.online_write_batch(config, view, proto_rows(view, [1], at, ["older"]), None)
    assert says() == b"later"


def both_stores(
    client: redis.Redis, project: str, view: FeatureView, data: list[Any]
) -> tuple[Hashes, Hashes]:
    """Return what Feast's own store and ours leave in Redis."""
    config = store_config(project)
    FastRedisOnlineStore().online_write_batch(config, view, data, None)
    ours = stored(client, project)
    client.delete(*ours)
    config.online_store = RedisOnlineStoreConfig(connection_string=connection_string())
    RedisOnlineStore().online_write_batch(config, view, data, None)
    return ours, stored(client, project)


def test_composite_keys_and_types_of_many_values_are_written_as_feast_does(client: redis.Redis, project: str):
    keys = ("terminal_id", "customer_id")
    view = FeatureView(
        name="pair_ü",
        entities=[Entity(name=key, join_keys=[key], value_type=ValueType.INT64) for key in keys],
        schema=[
            *(Field(name=key, dtype=Int64) for key in keys),
            Field(name="numbers", dtype=Array(Float64)),
            Field(name="words", dtype=Array(String)),
            Field(name="seen", dtype=UnixTimestamp),
        ],
        source=FileSource(name="file", path="none.parquet", timestamp_field="event_timestamp"),
    )
    rows = 50
    batch = pa.record_batch(
        {
            "terminal_id": pa.array(range(rows), pa.int64()),
            "customer_id": pa.array(range(-rows, 0), pa.int64()),
            "numbers": pa.array([[0.5 * at, -1.0] for at in range(rows)], pa.list_(pa.float64())),
            "words": pa.array([None, *(["ü", str(at)] for at in range(1, rows))], pa.list_(pa.string())),
            "seen": pa.array([None, *([NOW] * (rows - 1))], pa.timestamp("us", "UTC")),
            "event_timestamp": pa.array([NOW] * rows, pa.timestamp("us", "UTC")),
        }
    )
    data = _convert_arrow_to_proto(batch, view, dict.fromkeys(keys, ValueType.INT64))
    ours, feasts = both_stores(client, project, view, data)
    assert len(ours) == rows
    assert ours == feasts
    assert FastRedisOnlineStore().row_writer(store_config(project), view) is None


def test_rows_of_different_fields_are_written_as_feast_does(client: redis.Redis, project: str):
    view = batch_view()
    first, second = proto_rows(view, [1, 2], [microseconds(NOW)] * 2, ["x", None])
    partial = (second[0], {}, *second[2:])
    ours, feasts = both_stores(client, project, view, [first, partial])
    assert ours == feasts
    assert sorted(map(len, ours.values())) == [1, 2]


@pytest.mark.parametrize("broken", [b"\x08", b"\x1a\x01x", b"\x08" + b"\xff" * 12, b"yesterday"])
def test_a_time_that_can_not_be_read_counts_as_none(client: redis.Redis, project: str, broken: bytes):
    writer = row_writer(client, project)
    write(writer, [5], 1, "newer")
    [key] = stored(client, project)
    client.hset(key, time_field("view"), broken)
    assert write(writer, [4], 2, "newer") == 1
    assert marks(stored(client, project)) == [2]


def test_a_view_of_many_fields_is_written_whole(client: redis.Redis, project: str):
    """More than Lua passes in one call."""
    fields = [(f"field_{at}", "int64") for at in range(305)]
    columns = {name: np.array([at, -at]) for at, (name, _) in enumerate(fields)}
    writer = RedisRowWriter(client, project, "view", "customer_id", fields)
    assert writer.write(np.array([1, 2]), np.array([1, 1]), columns, "newer") == 2
    assert writer.write(np.array([1, 2]), np.array([0, 2]), columns, "newer") == 1
    _, [_, *values] = encoded(project, 1, 1, fields, {name: column[:1] for name, column in columns.items()})
    expected = dict(zip([field_name("view", name) for name, _ in fields], values, strict=True))
    row = min(stored(client, project).items())[1]
    assert row == {**expected, time_field("view"): encoded("", 0, 1)[1][0]}


def test_a_key_expires_as_feast_lets_it(client: redis.Redis, project: str):
    view, config = batch_view(), store_config(project, key_ttl_seconds=1000)
    store = FastRedisOnlineStore()
    store.online_write_batch(config, view, proto_rows(view, [1], [microseconds(NOW)], ["x"]), None)
    writer = store.row_writer(config, view)
    assert writer is not None
    writer.write(np.array([2]), np.array([microseconds(NOW)]), {"c": np.array(["x"])}, "newer")
    left = [client.ttl(key) for key in stored(client, project)]
    assert len(left) == 2
    assert all(900 < seconds <= 1000 for seconds in left)


def test_skipping_the_comparison_is_refused():
    with pytest.raises(ValueError, match="skip_dedup"):
        FastRedisOnlineStoreConfig(skip_dedup=True)  # type: ignore[arg-type]


def test_pushed_rows_are_served_by_the_sdk(client: redis.Redis, project: str, tmp_path: Path):
    """Through the type that feature_store.yaml names: `push`, `write_to_online_store` and the read."""
    store = FeatureStore(
        config=RepoConfig(
            project=project,
            provider="local",
            registry=str(tmp_path / "registry.db"),
            online_store={
                "type": "fast_redis_online_store.FastRedisOnlineStore",
                "connection_string": connection_string(),
            },
            entity_key_serialization_version=3,
        )
    )
    entity = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    frame = pd.DataFrame({"customer_id": [1, 2], "c": ["ü", None], "event_timestamp": [NOW, NOW]})
    path = tmp_path / "rows.parquet"
    frame.to_parquet(path)
    source = FileSource(name="file", path=str(path), timestamp_field="event_timestamp")
    view = batch_view("pushed", source=PushSource(name="push", batch_source=source))
    store.apply([entity, view])

    def served() -> list[Any]:
        rows = [{"customer_id": at} for at in (1, 2, 3)]
        return store.get_online_features(features=["pushed:c"], entity_rows=rows).to_dict()["c"]

    store.push("push", frame)
    assert served() == ["ü", None, None]
    store.write_to_online_store("pushed", frame.assign(c="older", event_timestamp=NOW - MICROSECOND))
    assert served() == ["ü", None, None]
    store.push("push", frame.assign(c="newer", event_timestamp=NOW + MICROSECOND))
    assert served() == ["newer", "newer", None]
    store.materialize(NOW - timedelta(days=1), NOW + timedelta(days=1), feature_views=["pushed"])
    assert served() == ["newer", "newer", None]
    store.teardown()
    assert not stored(client, project)


def chunks_of(project: str, count: int, before: Callable[[int], None]) -> Iterator[Encoded]:
    """Yield one row a chunk, and do something before each."""
    for at in range(count):
        before(at)
        key, [time] = encoded(project, at, at + 1)
        yield encode_items([key], [[time, b"value"]])


def test_a_script_that_redis_forgot_is_loaded_again(client: redis.Redis, project: str):
    caller = ScriptCaller(client, [time_field("view"), b"x"], "newer")
    other = connect()
    written = caller.write(chunks_of(project, 20, lambda at: other.script_flush() if at % 5 == 3 else None))
    other.close()
    assert written == 20
    assert len(stored(client, project)) == 20


def test_a_lost_connection_is_an_error_leaves_whole_rows_and_is_made_good_by_a_rerun(
    client: redis.Redis, project: str
):
    own = connect(project)
    caller = ScriptCaller(own, [time_field("view"), b"x"], "newer")

    def cut(at: int) -> None:
        if at == 7:
            ids = [each["id"] for each in client.client_list() if each["name"] == project]
            assert ids
            for each in ids:
                client.client_kill_filter(_id=each)

    with pytest.raises(redis.ConnectionError):
        caller.write(chunks_of(project, 20, cut))
    before = stored(client, project)
    assert len(before) < 20
    assert all(len(row) == 2 for row in before.values())
    assert caller.write(chunks_of(project, 20, lambda at: None)) == 20 - len(before)
    assert len(stored(client, project)) == 20


def test_an_error_of_redis_is_raised_and_the_connection_can_be_used_again(client: redis.Redis, project: str):
    """One of the keys holds a string: its call fails, and the replies after it are not taken for others'."""
    writer = row_writer(client, project)
    write(writer, [1], 1, "newer")
    [key] = stored(client, project)
    client.delete(key)
    client.set(key, b"not a hash")
    try:
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            write(writer, [1] * 200, 1, "newer")
        assert client.ping()
        assert write(writer, [1], 1, "newer", ids=np.array([10_000])) == 1
    finally:
        client.delete(key)
