"""The writer of the online store gives Feast's bytes for any values, and refuses what it can't write."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import redis
from common_test_utils import CONTRACTS_DIR
from hypothesis import given, settings
from hypothesis import strategies as st

import fast_redis_layout as layout
import fast_redis_writer
from fast_redis_vectors import TYPES, FeastStore, as_text, feature_view, vectors
from fast_redis_writer import Encoded, RedisRowWriter, bulk_strings

VECTORS = json.loads((CONTRACTS_DIR / "online_store_vectors.json").read_text())
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PROJECT, VIEW, JOIN_KEY = "projekt_ü", "customer_ü", "customer_id"
FIELDS = [(f"{kind}_feature", kind) for kind in TYPES]
DEFINITION = feature_view(VIEW, {JOIN_KEY: ("int64", 0)}, {name: (kind, None) for name, kind in FIELDS})
# Feast turns a column of integers with a null into doubles, and so loses what a double can't hold.
DOUBLE_SAFE = st.integers(-(2**53), 2**53)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": DOUBLE_SAFE,
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "bool": st.booleans(),
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    "bytes": st.binary(min_size=1, max_size=200),
    "unix_timestamp": st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(  # noqa: DTZ001
        lambda time: time.replace(tzinfo=UTC)
    ),
}
TIMES = st.integers(layout.FIRST_TIME_US, layout.LAST_TIME_US)


def writer(fields: list[tuple[str, str]] = FIELDS, join_key: str = JOIN_KEY) -> RedisRowWriter:
    """Return a writer that has nobody to write to."""
    return RedisRowWriter(cast(redis.Redis, None), PROJECT, VIEW, join_key, fields)


def hashes(chunks: Iterable[Encoded], names: list[bytes]) -> dict[bytes, dict[bytes, bytes]]:
    """Return what Redis holds after the rows were written one after the other."""
    found = {}
    for chunk in chunks:
        keys, values = bulk_strings(chunk.keys), bulk_strings(chunk.values)
        assert len(keys) == len(chunk)
        assert len(values) == len(keys) * len(names)
        key_at = value_at = 0
        for index, key in enumerate(keys):
            assert bulk_strings(chunk.keys[key_at : chunk.key_ends[index]]) == [key]
            own = values[index * len(names) : (index + 1) * len(names)]
            assert bulk_strings(chunk.values[value_at : chunk.value_ends[index]]) == own
            found[key] = dict(zip(names, own, strict=True))
            key_at, value_at = chunk.key_ends[index], chunk.value_ends[index]
    return found


def names_of(fields: list[tuple[str, str]]) -> list[bytes]:
    return [layout.time_field(VIEW), *(layout.field_name(VIEW, name) for name, _ in fields)]


def test_the_contracts_vectors_are_what_feast_gives():
    assert (CONTRACTS_DIR / "online_store_vectors.json").read_text(encoding="utf-8") == as_text(vectors())


@st.composite
def frames(draw: st.DrawFn) -> pa.RecordBatch:
    ids = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=12, unique=True))
    columns = {JOIN_KEY: pa.array(ids, pa.int64())}
    for name, kind in FIELDS:
        some = st.lists(st.none() | VALUES[kind], min_size=len(ids), max_size=len(ids))
        columns[name] = pa.array(draw(some), TYPES[kind][1])
    times = draw(st.lists(TIMES, min_size=len(ids), max_size=len(ids)))
    return pa.record_batch({**columns, "event_timestamp": pa.array(times, pa.timestamp("us", "UTC"))})


@settings(deadline=None, max_examples=60)
@given(frame=frames())
def test_rows_are_feasts_rows_byte_for_byte(frame: pa.RecordBatch):
    store = FeastStore(PROJECT)
    keys = {column.name: column.dtype.to_value_type() for column in DEFINITION.entity_columns}
    store.write_batch(DEFINITION, keys, frame)
    times = np.array(frame["event_timestamp"].cast(pa.int64()))
    ours = writer().encode(frame[JOIN_KEY], times, {name: frame[name] for name, _ in FIELDS})
    assert hashes(ours, names_of(FIELDS)) == store.redis.hashes


@pytest.mark.parametrize("vector", VECTORS["values"], ids=lambda v: f"{v['type']} {v['input']!r:.20}")
def test_a_value_is_that_of_the_contract(vector: dict[str, Any]):
    kind, value = vector["type"], vector["input"]
    if kind == "bytes" and value is not None:
        value = bytes.fromhex(value)
    elif kind == "unix_timestamp" and value is not None:
        value = datetime.fromisoformat(value)
    elif kind.startswith("float") and value is not None:
        value = float(value)
    column = pa.array([value], TYPES[kind][1])
    rows = writer([("x", kind)]).encode(np.array([1]), np.array([0]), {"x": column})
    [row] = hashes(rows, names_of([("x", kind)])).values()
    assert row[layout.field_name(VIEW, "x")].hex() == vector["hex"]


@pytest.mark.parametrize("vector", VECTORS["event_timestamps"], ids=lambda v: v["event_timestamp"])
def test_a_time_is_that_of_the_contract(vector: dict[str, str]):
    time = (datetime.fromisoformat(vector["event_timestamp"]) - EPOCH) // timedelta(microseconds=1)
    [row] = hashes(writer([]).encode(np.array([1]), np.array([time]), {}), names_of([])).values()
    assert row[layout.time_field(VIEW)].hex() == vector["hex"]


@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS["keys"] if len(vector["join_keys"]) == 1],
    ids=lambda v: f"{v['join_keys'][0]['name']} {v['join_keys'][0]['value']!r}",
)
def test_a_key_is_that_of_the_contract(vector: dict[str, Any]):
    [join] = vector["join_keys"]
    value = bytes.fromhex(join["value"]) if join["type"] == "bytes" else join["value"]
    ids = pa.array([value], TYPES[join["type"]][1])
    one = RedisRowWriter(cast(redis.Redis, None), vector["project"], VIEW, join["name"], [])
    assert [key.hex() for key in hashes(one.encode(ids, np.array([0]), {}), names_of([]))] == [vector["key"]]


@pytest.mark.parametrize("vector", VECTORS["fields"], ids=lambda v: v["feature"])
def test_a_field_is_that_of_the_contract(vector: dict[str, str]):
    assert layout.field_name(vector["view"], vector["feature"]).hex() == vector["field"]
    assert layout.time_field(vector["view"]).hex() == vector["time_field"]


def test_numpy_columns_give_the_bytes_of_arrow_columns():
    """None and NaN are null; whole numbers of any width are integers; times without a zone are UTC."""
    fields = [("f", "float64"), ("i", "int64"), ("s", "string"), ("t", "unix_timestamp"), ("b", "bool")]
    columns = {
        "f": np.array([1.5, np.nan]),
        "i": np.array([7, -7], dtype=np.int16),
        "s": np.array(["ü", None], dtype=object),
        "t": np.array(["2026-11-21T06:00:00.123456789", "NaT"], dtype="datetime64[ns]"),
        "b": np.array([True, False]),
    }
    arrow = {
        "f": pa.array([1.5, None]),
        "i": pa.array([7, -7]),
        "s": pa.chunked_array([pa.array(["ü"]), pa.array([None], pa.string())]),
        "t": pa.array([datetime(2026, 11, 21, 6, tzinfo=UTC), None], pa.timestamp("s", "UTC")),
        "b": pa.array([True, False]),
    }
    ids, times, names = np.array([1, 2]), np.array([10, 20]), names_of(fields)
    ours = hashes(writer(fields).encode(ids, times, columns), names)
    assert ours == hashes(writer(fields).encode(ids, times, arrow), names)


def test_long_texts_are_cut_into_chunks_of_bounded_memory(monkeypatch: pytest.MonkeyPatch):
    """One text of 200 kB does not make every row of its chunk 200 kB wide."""
    monkeypatch.setattr(fast_redis_writer, "CHUNK_BYTES", 100_000)
    texts = ["short"] * 1000
    texts[123] = "ü" * 100_000
    fields = [("s", "string")]
    chunks = list(
        writer(fields).encode(np.arange(1000), np.arange(1000), {"s": np.array(texts, dtype=object)})
    )
    assert 2 < len(chunks) < 40
    rows = hashes(chunks, names_of(fields))
    assert len(rows) == 1000
    assert sum(len(row[layout.field_name(VIEW, "s")]) > 200_000 for row in rows.values()) == 1


ONE, ZERO = np.array([1]), np.array([0])
LATER_THAN_EVER = np.array([layout.LAST_TIME_US + 1])


@pytest.mark.parametrize(
    ("error", "message", "column", "ids", "times"),
    [
        (TypeError, "x: double values for a feature of type int64", np.array([1.0]), ONE, ZERO),
        (ValueError, "x: 2 values for 1 entity ids", np.array([1, 2]), ONE, ZERO),
        (ValueError, "event times: 2 values for 1", ONE, ONE, np.array([0, 1])),
        (TypeError, "not int64 microseconds", ONE, ONE, np.array([0.5])),
        (ValueError, "outside the years", ONE, ONE, LATER_THAN_EVER),
        (ValueError, "an entity id is null", ONE, pa.array([None], pa.int64()), ZERO),
        (TypeError, "entity ids are double", ONE, np.array([1.0]), ZERO),
    ],
)
def test_what_can_not_be_written_is_refused_by_name(
    error: type[Exception], message: str, column: Any, ids: Any, times: Any
):
    with pytest.raises(error, match=message):
        writer([("x", "int64")]).encode(ids, times, {"x": column})


def test_a_missing_column_is_named():
    with pytest.raises(KeyError, match="x"):
        writer([("x", "int64")]).encode(ONE, ZERO, {"y": ONE})


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="no such type: decimal"):
        writer([("x", "decimal")])
