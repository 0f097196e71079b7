"""Materialization on the running stack: Feast's bytes, corrections and late rows, kills in the middle."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from common_test_utils import ROOT_DIR, connect_database, connect_redis, require_stack
from feast import Entity, FeatureStore, FeatureView, Field, PushSource, RepoConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.types import Array, Bool, Float64, Int64, String, UnixTimestamp
from feast.value_type import ValueType

import fast_redis_source
import materialize as module
from fast_redis_source import Interval
from materialize import materialize

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

END = datetime(2026, 11, 21, 6, 30, 15, 123_456, tzinfo=UTC)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
TYPES = {"count": Int64, "mean": Float64, "town": String, "seen": Bool, "at": UnixTimestamp}
COLUMNS = "customer_id bigint, event_timestamp timestamptz, created_timestamp timestamptz"
VALUES = "count bigint, mean float8, town text, seen bool, at timestamptz"


class Stage:
    """A schema, a Feast project and tables of the test's own."""

    def __init__(self, folder: Path) -> None:
        require_stack()
        self.name = f"test_{uuid4().hex[:12]}"
        self.folder = folder
        self.database = connect_database()
        self.redis = connect_redis(30)
        self.execute(f"create schema {self.name}")
        self.store = self.open("fast_redis_online_store.FastRedisOnlineStore")

    def execute(self, statement: str, *arguments: Any) -> None:
        self.database.execute(statement.replace("SCHEMA", self.name), arguments)  # type: ignore[arg-type]

    def open(self, online_type: str) -> FeatureStore:
        """Return Feast on the test's registry, with a type of online store."""
        environment = os.environ
        address = f"{environment['REDIS_HOST']}:{environment['REDIS_PORT']}"
        return FeatureStore(
            config=RepoConfig(
                project=self.name,
                provider="local",
                registry=str(self.folder / "registry.db"),
                offline_store={
                    "type": "postgres",
                    "host": environment["FEATURE_STORE_DB_HOST"],
                    "port": environment["FEATURE_STORE_DB_PORT"],
                    "database": environment["FEATURE_STORE_DB_NAME"],
                    "user": environment["FEATURE_STORE_DB_USER"],
                    "password": environment["FEATURE_STORE_DB_PASSWORD"],
                    "db_schema": self.name,
                    "sslmode": "prefer",
                },
                online_store={
                    "type": online_type,
                    "connection_string": f"{address},password={environment['REDIS_PASSWORD']}",
                },
                entity_key_serialization_version=3,
            )
        )

    def table(self, name: str, columns: str = VALUES) -> PostgreSQLSource:
        self.execute(f"create table SCHEMA.{name} ({COLUMNS}, {columns})")
        return self.source(name)

    def source(self, name: str) -> PostgreSQLSource:
        return PostgreSQLSource(
            name=name,
            table=f"{self.name}.{name}",
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        )

    def apply(self, *views: FeatureView) -> None:
        entities = {key for view in views for key in view.entities}
        self.store.apply([entity(key) for key in sorted(entities)] + list(views))

    def own_keys(self) -> list[bytes]:
        return [key for key in self.redis.scan_iter(count=10_000) if key.endswith(self.name.encode())]

    def redis_hashes(self) -> dict[bytes, dict[bytes, bytes]]:
        keys = [key for key in self.own_keys() if not key.startswith(b"materialization_progress")]
        with self.redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hgetall(key)
            return dict(zip(keys, pipeline.execute(), strict=True))

    def empty_redis(self) -> None:
        if keys := self.own_keys():
            self.redis.delete(*keys)

    def close(self) -> None:
        self.empty_redis()
        self.execute("drop schema SCHEMA cascade")
        self.database.close()
        self.redis.close()

    def served(self, *ids: int, features: str = "view:count") -> list[Any]:
        rows = [{"customer_id": each} for each in ids]
        response = self.store.get_online_features(features=[features], entity_rows=rows).to_dict()
        values: list[Any] = response[features.partition(":")[2]]
        return values


def entity(name: str) -> Entity:
    return Entity(name=name, join_keys=[name], value_type=ValueType.INT64)


def feature_view(source: Any, keys: tuple[str, ...] = ("customer_id",), **types: Any) -> FeatureView:
    types = types or TYPES
    return FeatureView(
        name="view",
        entities=[entity(key) for key in keys],
        ttl=DAY,
        schema=[
            Field(name=name, dtype=dtype) for name, dtype in {**dict.fromkeys(keys, Int64), **types}.items()
        ],
        source=source,
    )


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    try:
        yield made
    finally:
        made.close()


def insert(
    stage: Stage, customer: int, event: datetime, count: int | None, created: datetime | None = None
) -> None:
    statement = "insert into SCHEMA.rows values (%s, %s, %s, %s, %s, %s, %s, %s)"
    town = None if count is None else f"Zürich {count}"
    mean = None if count is None else count / 3
    stage.execute(statement, customer, event, created or event, count, mean, town, bool(count), event)


def fill(stage: Stage, customers: int) -> None:
    """Three rows a customer, a microsecond apart, known at once; some values null."""
    stage.execute(
        """
        insert into SCHEMA.rows
        select c, newest - n * interval '1 microsecond', newest, case when c %% 7 <> 0 then 1000 * n + c end,
            case when c %% 5 <> 0 then n + c / 7.0 end,
            case when c %% 3 <> 0 then 'ü' || repeat('x', abs(c %% 150)) end,
            c %% 2 = 0, case when c %% 4 <> 0 then newest + c * interval '1 day' end
        from generate_series(%s::int, %s::int) as c, generate_series(0, 2) as n,
            lateral (select %s::timestamptz - abs(c) * interval '1 second' as newest) as times
        """,
        -(customers // 2),
        customers - customers // 2 - 1,
        END,
    )


def test_rows_are_those_of_feasts_own_materialization_by_every_door(stage: Stage):
    """Ours, and `store.materialize` with our class and with Feast's own Redis store."""
    stage.apply(feature_view(stage.table("rows")))
    fill(stage, 2_000)
    materialize(stage.store, END, None)
    ours = stage.redis_hashes()
    assert len(ours) == 2_000
    stage.empty_redis()
    stage.store.materialize(END - DAY, END)
    through_the_class = stage.redis_hashes()
    stage.empty_redis()
    stage.open("redis").materialize(END - DAY, END)
    feasts = stage.redis_hashes()
    assert ours == feasts
    assert through_the_class == feasts
    stage.store.refresh_registry()
    intervals = stage.store.get_feature_view("view").materialization_intervals
    assert intervals == [(END - DAY, END)] * 3
    assert stage.store.get_feature_view("view").most_recent_end_time == END


def test_composite_keys_lists_and_decimals_are_written_too(stage: Stage):
    """What has no column of bytes goes the slower way, to the bytes that Feast's own store gives."""
    source = stage.table("rows", "terminal_id bigint, words text[], price numeric")
    view = feature_view(source, ("terminal_id", "customer_id"), words=Array(String), price=Float64)
    stage.apply(view)
    stage.execute(
        "insert into SCHEMA.rows select c, %s, %s, -c, array['ü', c::text], c / 8.0 "
        "from generate_series(1, 300) as c",
        END,
        END,
    )
    materialize(stage.store, END, None)
    ours = stage.redis_hashes()
    assert len(ours) == 300
    rows = [{"terminal_id": -8, "customer_id": 8}]
    response = stage.store.get_online_features(["view:words", "view:price"], rows).to_dict()
    assert (response["words"], response["price"]) == ([["ü", "8"]], [1.0])
    stage.execute("alter table SCHEMA.rows alter price type float8")
    stage.empty_redis()
    stage.open("redis").materialize(END - DAY, END)
    assert stage.redis_hashes() == ours


def test_what_was_not_known_at_the_end_is_not_written(stage: Stage):
    stage.apply(feature_view(stage.table("rows")))
    insert(stage, 1, END - 2 * SECOND, 1)
    insert(stage, 1, END - SECOND, 2, created=END + SECOND)
    insert(stage, 2, END - SECOND, 3, created=END)
    insert(stage, 2, END + SECOND, 4)
    materialize(stage.store, END, None)
    assert stage.served(1, 2) == [1, 3]
    materialize(stage.store, END + SECOND, None)
    assert stage.served(1, 2) == [2, 4]


def test_late_and_corrected_rows_arrive_wherever_the_last_run_ended(stage: Stage):
    stage.apply(feature_view(stage.table("rows")))
    insert(stage, 1, END - 3 * SECOND, 1)
    materialize(stage.store, END, None)
    insert(stage, 1, END - 2 * SECOND, 2)
    insert(stage, 2, END - DAY, 5)
    insert(stage, 3, END - DAY - SECOND, 6)
    materialize(stage.store, END, None)
    assert stage.served(1, 2, 3) == [2, 5, None]
    stage.execute("update SCHEMA.rows set count = count + 100")
    materialize(stage.store, END, None)
    assert stage.served(1, 2) == [102, 105]
    insert(stage, 1, END - 2 * SECOND, 7, created=END - SECOND)
    materialize(stage.store, END, None)
    assert stage.served(1) == [7], "of two rows of one time the one that became known later counts"


def test_a_stream_fed_view_keeps_the_streams_row_of_the_same_time(stage: Stage):
    batch = stage.table("rows")
    stage.apply(feature_view(PushSource(name="push", batch_source=batch)))
    insert(stage, 1, END, 1)
    insert(stage, 2, END, 2)
    pushed = {"customer_id": [1], "event_timestamp": [END], "created_timestamp": [END], "count": [50]}
    pushed |= {"mean": [0.5], "town": ["x"], "seen": [True], "at": [END]}
    stage.store.write_to_online_store("view", inputs=pushed)
    materialize(stage.store, END, None)
    assert stage.served(1, 2) == [50, 2]
    stage.store.materialize(END - DAY, END)
    assert stage.served(1, 2) == [50, 2], "Feast's own materialization too"
    materialize(stage.store, END, END - DAY)
    assert stage.served(1, 2) == [1, 2], "a forced run writes over it"


def test_an_explicit_start_sets_the_store_back(stage: Stage):
    stage.apply(feature_view(stage.table("rows")))
    insert(stage, 1, END - 2 * SECOND, 1)
    insert(stage, 1, END, 2)
    materialize(stage.store, END, None)
    materialize(stage.store, END - SECOND, None)
    assert stage.served(1) == [2]
    materialize(stage.store, END - SECOND, END - DAY)
    assert stage.served(1) == [1]


def keys_read(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Note the keys that are read from PostgreSQL, and die once a number of them is written."""
    found: list[int] = []
    read_ahead = fast_redis_source.read_ahead

    def noting(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        for batch in read_ahead(reader):
            if stop_after is not None and len(found) >= stop_after:
                raise KeyboardInterrupt
            found.extend(batch["customer_id"].to_pylist())
            yield batch

    monkeypatch.setattr(fast_redis_source, "read_ahead", noting)
    return found


def stop_midway(stage: Stage, end: datetime, start: datetime | None = None) -> list[int]:
    """Run until half of 4,000 customers is written; return their keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_redis_source, "BATCH_BYTES", 20_000)
        done = keys_read(patch, stop_after=2_000)
        with pytest.raises(KeyboardInterrupt):
            materialize(stage.store, end, start)
    assert 2_000 <= len(done) < 3_000
    return done


@pytest.fixture
def quiet_table(stage: Stage) -> Stage:
    """4,000 customers, in a table whose writes PostgreSQL has counted."""
    stage.apply(feature_view(stage.table("rows")))
    fill(stage, 4_000)
    stage.execute("select pg_stat_force_next_flush()")
    return stage


def test_a_run_that_was_stopped_goes_on_where_it_was(quiet_table: Stage, monkeypatch: pytest.MonkeyPatch):
    stage = quiet_table
    materialize(stage.store, END, None)
    whole = stage.redis_hashes()
    stage.empty_redis()
    done = stop_midway(stage, END)
    read = keys_read(monkeypatch)
    materialize(stage.store, END, None)
    assert not set(read) & set(done)
    assert len(read) + len(done) == 4_000
    assert stage.redis_hashes() == whole
    read.clear()
    materialize(stage.store, END, None)
    assert len(read) == 4_000, "a finished run leaves nothing to go on from"


def test_a_later_run_goes_on_and_brings_what_became_known_since(
    quiet_table: Stage, monkeypatch: pytest.MonkeyPatch
):
    """Customer -1999, which the stopped run wrote, has a row between the two ends, there all the time."""
    stage = quiet_table
    insert(stage, -1999, END + SECOND, 777)
    insert(stage, -1998, END - 9000 * SECOND, 888, created=END + SECOND)
    stage.execute("select pg_stat_force_next_flush()")
    done = stop_midway(stage, END)
    assert {-1999, -1998} < set(done)
    read = keys_read(monkeypatch)
    materialize(stage.store, END + 2 * SECOND, None)
    assert set(read) & set(done) == {-1999, -1998}
    after = stage.redis_hashes()
    stage.empty_redis()
    materialize(stage.store, END + 2 * SECOND, END + 2 * SECOND - DAY)
    assert stage.redis_hashes() == after
    assert stage.served(-1999) == [777]


@pytest.mark.parametrize(
    "change",
    [
        lambda stage: stage.empty_redis(),
        lambda stage: stage.execute("update SCHEMA.rows set count = 5 where customer_id = -2000"),
        lambda stage: stage.execute("delete from SCHEMA.rows where customer_id = -2000"),
        lambda stage: stage.execute("truncate SCHEMA.rows"),
    ],
    ids=["Redis emptied", "row corrected", "row deleted", "table replaced"],
)
def test_a_run_begins_anew_where_what_it_wrote_may_be_wrong_or_gone(
    quiet_table: Stage, change: Callable[[Stage], None]
):
    stage = quiet_table
    stop_midway(stage, END)
    change(stage)
    stage.execute("select pg_stat_force_next_flush()")
    fill(stage, 10)
    with pytest.MonkeyPatch.context() as patch:
        read = keys_read(patch)
        materialize(stage.store, END, None)
    remaining = stage.database.execute(
        f"select count(distinct customer_id) from {stage.name}.rows"
    ).fetchone()
    assert remaining is not None
    assert len(read) == remaining[0]


def test_a_source_that_is_a_query_is_written_whole_each_time(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """Nothing tells whether its rows are the same."""
    stage.table("rows")
    fill(stage, 4_000)
    query = PostgreSQLSource(
        name="query",
        query=f"select * from {stage.name}.rows where customer_id is not null",
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )
    stage.apply(feature_view(query))
    stop_midway(stage, END)
    read = keys_read(monkeypatch)
    materialize(stage.store, END, None)
    assert len(read) == 4_000
    assert len(stage.redis_hashes()) == 4_000


def test_an_empty_interval_is_noted_like_any_other(stage: Stage):
    stage.apply(feature_view(stage.table("rows")))
    materialize(stage.store, END, None)
    assert stage.redis_hashes() == {}
    stage.store.refresh_registry()
    assert stage.store.get_feature_view("view").most_recent_end_time == END


def test_a_null_key_is_an_error_that_names_it(stage: Stage):
    stage.apply(feature_view(stage.table("rows")))
    stage.execute("insert into SCHEMA.rows (event_timestamp, created_timestamp) values (%s, %s)", END, END)
    with pytest.raises(ValueError, match="customer_id: an entity id is null"):
        materialize(stage.store, END, None)


CHILD = """
import sys
from datetime import datetime
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[2])
import fast_redis_source
fast_redis_source.BATCH_BYTES = 20_000
from pathlib import Path
from materialize import materialize
from test_integration_materialize import reopened
print("ready", flush=True)
materialize(reopened(sys.argv[3], Path(sys.argv[4])), datetime.fromisoformat(sys.argv[5]), None)
"""


def reopened(name: str, folder: Path) -> FeatureStore:
    """Return Feast on the stage of another process."""
    stage = Stage.__new__(Stage)
    stage.name, stage.folder = name, folder
    return stage.open("fast_redis_online_store.FastRedisOnlineStore")


def test_kill_minus_nine_leaves_whole_rows_and_the_next_run_finishes(stage: Stage):
    """Killed twice in the middle, then run to the end: Redis is as if nothing had happened."""
    stage.apply(feature_view(stage.table("rows")))
    fill(stage, 60_000)
    stage.execute("select pg_stat_force_next_flush()")
    arguments = [str(ROOT_DIR / "feast_repository"), str(ROOT_DIR / "tests"), stage.name, str(stage.folder)]
    command = [sys.executable, "-c", CHILD, *arguments, END.isoformat()]
    counts = []
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            before = stage.redis.dbsize()
            deadline = time.monotonic() + 60
            while stage.redis.dbsize() < before + 5_000:
                assert child.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
        rows = stage.redis_hashes()
        assert all(len(row) == 1 + len(TYPES) for row in rows.values())
        counts.append(len(rows))
    assert 0 < counts[0] < counts[1] < 60_000
    with pytest.MonkeyPatch.context() as patch:
        read = keys_read(patch)
        materialize(stage.store, END, None)
    assert 0 < len(read) < 60_000 - 9_000, "it went on after what the killed runs wrote"
    after = stage.redis_hashes()
    assert len(after) == 60_000
    stage.empty_redis()
    materialize(stage.store, END, None)
    assert stage.redis_hashes() == after


def test_a_racing_push_and_a_materialization_leave_the_newest_row_of_each(stage: Stage):
    """Half of the customers get a newer row during the run, before or after their own is written."""
    stage.apply(feature_view(PushSource(name="push", batch_source=stage.table("rows"))))
    fill(stage, 4_000)
    online = stage.store._get_provider().online_store
    view = stage.store.get_feature_view("view")
    writer = online.row_writer(stage.store.config, view)
    newer = np.int64((END + SECOND).timestamp() * 1_000_000)
    write = module.ViewWriter.write

    def racing(self: Any, batch: pa.RecordBatch, time_column: str) -> int:
        ids = np.array([key for key in batch["customer_id"].to_pylist() if key % 2])
        columns = {"count": ids, "mean": ids / 2, "town": ids.astype(str)}
        columns |= {"seen": ids > 0, "at": np.full(len(ids), END.replace(tzinfo=None), "datetime64[us]")}
        first = len(ids) // 2
        at = np.full(len(ids), newer)
        before = {name: column[:first] for name, column in columns.items()}
        after = {name: column[first:] for name, column in columns.items()}
        writer.write(ids[:first], at[:first], before, "newer")
        written = write(self, batch, time_column)
        writer.write(ids[first:], at[first:], after, "newer")
        return written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_redis_source, "BATCH_BYTES", 20_000)
        patch.setattr(module.ViewWriter, "write", racing)
        materialize(stage.store, END, None)
    odd = [key for key in range(-2_000, 2_000) if key % 2][:400]
    assert stage.served(*odd) == odd
    assert stage.served(*odd, features="view:town") == [str(key) for key in odd]
    assert stage.served(2, 4) == [2, 4]


def test_an_interval_is_the_ttl_before_the_end():
    assert module.interval_to_write(DAY, None, END, None) == Interval(END - DAY, END)
