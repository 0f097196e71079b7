"""What a materialization writes: everything that can still be valid at END, however the last run went."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
import redis
from feast import FeatureStore, FileSource
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import PostgreSQLOfflineStoreConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from hypothesis import given
from hypothesis import strategies as st

import materialize as module
from fast_redis_online_store import FastRedisOnlineStore
from fast_redis_progress import Progress
from fast_redis_source import FeatureDatabase, FeatureRows, Interval, Resume, read_ahead
from fast_redis_vectors import feature_view
from fast_redis_writer import Ties
from materialize import interval_to_write, is_further, is_plain, main, materialize, parse_time, plan, ties_of

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
END = datetime(2026, 11, 21, 6, tzinfo=UTC)
TIMES = st.integers(0, 400 * 86_400).map(lambda seconds: END - timedelta(seconds=seconds))


def view(  # noqa: PLR0917 (what materialize() reads of a view)
    name: str,
    ttl: timedelta | None,
    written_until: datetime | None = None,
    online: bool = True,
    stream: object = None,
    udf: object = None,
) -> Any:
    return SimpleNamespace(
        name=name,
        ttl=ttl,
        most_recent_end_time=written_until,
        online=online,
        stream_source=stream,
        feature_transformation=udf,
        source_views=[],
    )


class Online(FastRedisOnlineStore):
    """The online store, which notes what it is told."""

    def __init__(self) -> None:
        self.forced: list[Ties] = []

    @contextmanager
    def forcing(self, ties: Ties) -> Iterator[None]:
        self.forced.append(ties)
        yield


class Store:
    """Feast, as far as materialize() knows it."""

    def __init__(self, *views: Any, online: object = None) -> None:
        self.views = views
        self.online = online or Online()
        self.project = "project"
        self.registry = self
        self.config = SimpleNamespace(offline_store=None)
        self.noted: list[tuple[str, datetime, datetime]] = []
        self.by_engine: list[tuple[datetime, datetime, list[str]]] = []

    def list_feature_views(self) -> list[Any]:
        return list(self.views)

    def _get_provider(self) -> Any:
        return SimpleNamespace(online_store=self.online)

    def apply_materialization(self, view: Any, project: str, start: datetime, end: datetime) -> None:
        assert project == self.project
        self.noted.append((view.name, start, end))

    def materialize(self, start: datetime, end: datetime, feature_views: list[str]) -> None:
        self.by_engine.append((start, end, feature_views))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Interval, Ties]]:
    """What is written, without a database."""
    found: list[tuple[str, Interval, Ties]] = []

    def write_view(store: Any, database: Any, view: Any, interval: Interval, ties: Ties) -> tuple[int, int]:
        found.append((view.name, interval, ties))
        return 3, 2

    monkeypatch.setattr(module, "write_view", write_view)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-21", "2026-11-21T00:00:00+00:00"),
        ("2026-11-21T06:30:00", "2026-11-21T06:30:00+00:00"),
        ("2026-11-21T06:30:00Z", "2026-11-21T06:30:00+00:00"),
        ("2026-11-21 08:30:00+02:00", "2026-11-21T06:30:00+00:00"),
    ],
)
def test_times_without_an_offset_are_utc(text: str, expected: str):
    assert parse_time(text).isoformat() == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2026-02-30", "21.11.2026"])
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="ISO 8601"):
        parse_time(text)


@given(end=TIMES, written_until=st.none() | TIMES, ttl=st.timedeltas(DAY, 30 * DAY))
def test_everything_still_valid_is_written_unless_the_store_stands_later(
    end: datetime, written_until: datetime | None, ttl: timedelta
):
    interval = interval_to_write(ttl, written_until, end, None)
    if written_until is not None and written_until > end:
        assert interval is None
    else:
        assert interval == Interval(end - ttl, end)


@given(end=TIMES, written_until=st.none() | TIMES, start=TIMES)
def test_an_explicit_start_always_writes(end: datetime, written_until: datetime | None, start: datetime):
    assert interval_to_write(DAY, written_until, end, start) == Interval(start, end)


def test_each_view_has_the_interval_of_its_lifetime():
    views = [view("b", DAY), view("a", DAY, END), view("c", 3650 * DAY), view("d", DAY, END + DAY)]
    assert plan(views, END, None) == {
        "a": Interval(END - DAY, END),
        "b": Interval(END - DAY, END),
        "c": Interval(END - 3650 * DAY, END),
        "d": None,
    }


def test_a_view_without_a_lifetime_is_refused():
    with pytest.raises(ValueError, match="a has no time to live"):
        plan([view("a", None)], END, None)


def test_only_online_views_are_written_and_the_others_named(
    written: list[Any], capsys: pytest.CaptureFixture[str]
):
    store = Store(view("a", DAY), view("b", DAY, online=False), view("c", DAY, END + DAY))
    materialize(cast(FeatureStore, store), END, None)
    assert written == [("a", Interval(END - DAY, END), "same_or_newer")]
    assert store.noted == [("a", END - DAY, END)]
    out = capsys.readouterr().out
    assert "wrote a as of 2026-11-21T06:00:00+00:00: 2 of 3 rows" in out
    assert "stands later than 2026-11-21T06:00:00+00:00: c" in out


def test_a_view_that_only_feasts_engine_computes_is_left_to_it(written: list[Any]):
    store = Store(view("a", DAY, udf=print), view("b", DAY))
    materialize(cast(FeatureStore, store), END, END - 2 * DAY)
    assert store.by_engine == [(END - 2 * DAY, END, ["a"])]
    assert store.online.forced == ["always"]  # type: ignore[attr-defined]
    assert [name for name, _, _ in written] == ["b"]
    assert [name for name, _, _ in store.noted] == ["b"], "Feast's engine notes its own"


def test_ties_depend_on_who_else_writes():
    batch, streamed = view("a", DAY), view("a", DAY, stream=object())
    assert ties_of(batch, forced=False) == "same_or_newer"
    assert ties_of(streamed, forced=False) == "newer"
    assert ties_of(batch, forced=True) == ties_of(streamed, forced=True) == "always"


def test_an_interrupted_run_is_not_noted_as_done(monkeypatch: pytest.MonkeyPatch):
    def write_view(*arguments: Any) -> tuple[int, int]:
        raise ConnectionError("gone")

    monkeypatch.setattr(module, "write_view", write_view)
    store = Store(view("a", DAY))
    with pytest.raises(ConnectionError):
        materialize(cast(FeatureStore, store), END, None)
    assert store.noted == []


def test_another_online_store_is_refused():
    with pytest.raises(SystemExit, match="another online store"):
        materialize(cast(FeatureStore, Store(view("a", DAY), online=object())), END, None)


def test_an_empty_registry_says_what_to_do():
    with pytest.raises(SystemExit, match=r"run_feast_apply\.sh"):
        materialize(cast(FeatureStore, Store()), END, None)


def test_a_start_after_the_end_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["2026-11-21", "--from", "2026-11-22"])
    assert stop.value.code == 2
    assert "is not before END" in capsys.readouterr().err


class Memory:
    """Redis, as far as a note needs it."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        return self.values.get(key)

    def set(self, key: str, value: str, ex: int) -> None:
        assert ex > 0
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


INTERVAL = Interval(END - DAY, END)


def noted(ties: Ties = "same_or_newer") -> Progress:
    progress = Progress(cast(redis.Redis, Memory()), "project", "view")
    progress.reached(INTERVAL, ties, "version", (7,))
    return progress


def test_a_run_goes_on_where_the_same_run_was_killed():
    assert noted().resume(INTERVAL, "same_or_newer", "version") == Resume((7,), END)


def test_a_later_end_goes_on_too_and_knows_what_the_killed_run_has_not_seen():
    later = Interval(END - DAY + SECOND, END + SECOND)
    assert noted().resume(later, "same_or_newer", "version") == Resume((7,), END)


@pytest.mark.parametrize(
    ("interval", "ties", "version"),
    [
        (INTERVAL, "newer", "version"),
        (INTERVAL, "same_or_newer", "another version"),
        (INTERVAL, "same_or_newer", None),
        (Interval(END - DAY, END - SECOND), "same_or_newer", "version"),
        (Interval(END - DAY - SECOND, END), "same_or_newer", "version"),
    ],
)
def test_what_the_killed_run_might_lack_is_written_from_the_beginning(
    interval: Interval, ties: Ties, version: str | None
):
    assert noted().resume(interval, ties, version) is None


def test_a_forced_run_goes_on_only_to_the_same_end():
    progress = noted("always")
    assert progress.resume(INTERVAL, "always", "version") == Resume((7,), END)
    assert progress.resume(Interval(END - DAY, END + SECOND), "always", "version") is None


def test_a_finished_run_leaves_no_note():
    progress = noted()
    progress.finished()
    assert progress.resume(INTERVAL, "same_or_newer", "version") is None


def test_notes_are_of_one_view_and_one_project():
    memory = Memory()
    for project, name in (("project", "view"), ("project", "view_2"), ("project_2", "view")):
        Progress(cast(redis.Redis, memory), project, name).reached(INTERVAL, "newer", "version", (name,))
    assert sorted(json.loads(text)["last_key"][0] for text in memory.values.values()) == [
        "view",
        "view",
        "view_2",
    ]


@pytest.mark.parametrize(
    ("key", "resume", "further"),
    [
        ((5,), None, True),
        (("text",), None, True),
        ((b"bytes",), None, False),
        ((5,), Resume((7,), END), True),
        ((5,), Resume((7,), END - SECOND), False),
        ((7,), Resume((7,), END - SECOND), False),
        ((8,), Resume((7,), END - SECOND), True),
        (("b",), Resume(("a",), END - SECOND), False),
        (("b",), Resume(("a",), END), True),
    ],
)
def test_a_note_never_says_more_than_is_written(key: tuple[Any, ...], resume: Resume | None, further: bool):
    assert is_further(key, INTERVAL, resume) is further


def rows_of(source: Any) -> FeatureRows:
    settings = PostgreSQLOfflineStoreConfig(host="h", database="d", user="u", password="p")
    defined = feature_view("view", {"customer_id": ("int64", 0)}, {"x": ("float64", 0.0)})
    defined.batch_source = source
    return FeatureRows(FeatureDatabase(settings), defined)


def test_a_view_of_another_source_is_refused():
    with pytest.raises(TypeError, match="view is not read from PostgreSQL"):
        rows_of(FileSource(name="file", path="x.parquet", timestamp_field="t"))


def test_names_and_times_reach_the_query_quoted():
    """No name of a column ends a quotation, and a renamed column is read by its own name."""
    source = PostgreSQLSource(
        name="s",
        table="t",
        timestamp_field='at"; drop',
        created_timestamp_column="made",
        field_mapping={"col": "x"},
    )
    query = rows_of(source)._query(INTERVAL, None, {"x": "double precision"})
    assert 'select distinct on ("customer_id") "customer_id" as "customer_id"' in query
    assert '"col"::double precision as "x"' in query
    assert '"at""; drop" desc' in query
    assert "\"made\" <= '2026-11-21 06:00:00+00:00'" in query


def test_rows_are_fetched_ahead_and_empty_batches_left_out():
    schema = pa.schema({"x": pa.int64()})
    batches = [pa.record_batch([pa.array(values, pa.int64())], schema) for values in ([1], [], [2, 3])]
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    assert [batch["x"].to_pylist() for batch in read_ahead(reader)] == [[1], [2, 3]]


def test_a_plain_view_is_one_without_transformation():
    assert is_plain(view("a", DAY))
    assert not is_plain(view("a", DAY, udf=print))
    derived = view("a", DAY)
    derived.source_views = [view("b", DAY)]
    assert not is_plain(derived)
