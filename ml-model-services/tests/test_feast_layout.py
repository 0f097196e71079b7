from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_testkit import CONTRACTS, NOON, encoded_timestamp, encoded_value, replies_to, timestamp_message

from common_service_libs.feast_layout import (
    MAX_KEPT_VALUES,
    NumberCache,
    TextCache,
    TimestampCache,
    decode_timestamp,
    decode_value,
    entity_key,
    field_name,
    murmur3_32,
    timestamp_field,
)
from common_service_libs.feature_contract import FIELD_TYPES, KEY_TYPES, FeatureContract, parse_contract
from common_service_libs.feature_status import STATUSES
from common_service_libs.online_plan import ReadPlan
from common_service_libs.online_store import FeatureReader

VECTORS = json.loads((CONTRACTS / "online_store_vectors.json").read_text())
ONE_KEY = [key for key in VECTORS["keys"] if len(key["join_keys"]) == 1]
SERVED_KEYS = [key for key in ONE_KEY if key["join_keys"][0]["type"] in KEY_TYPES]


def epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def read_by_feast(kind: str, value: Any) -> Any:
    """Return a value of the vectors as this root holds it: numbers and times are doubles."""
    if kind == "string" or value is None:
        return value
    return epoch(value) if kind == "unix_timestamp" else float(value)


def test_the_vectors_are_those_of_the_layout_read_here() -> None:
    assert VECTORS["format_version"] == 1
    assert VECTORS["entity_key_serialization_version"] == 3
    assert {key["join_keys"][0]["type"] for key in SERVED_KEYS} == KEY_TYPES
    assert {value["type"] for value in VECTORS["values"]} - {"bytes"} == FIELD_TYPES


@pytest.mark.parametrize("key", SERVED_KEYS, ids=lambda key: str(key["join_keys"][0]["value"]))
def test_keys_are_those_that_feast_writes(key: dict) -> None:
    [join_key] = key["join_keys"]
    written = bytes.fromhex(key["key"])
    assert entity_key(join_key["name"], join_key["value"], key["project"]) == written
    plan = ReadPlan(shop_of([{"name": "v", "fields": []}], join_key), key["project"])
    assert b"\r\n$%d\r\n%b\r\n" % (len(written), written) in plan.one({join_key["name"]: join_key["value"]})


@pytest.mark.parametrize("field", VECTORS["fields"], ids=lambda field: field["feature"])
def test_fields_are_those_that_feast_writes(field: dict) -> None:
    assert field_name(field["view"], field["feature"]).hex() == field["field"]
    assert timestamp_field(field["view"]).hex() == field["time_field"]


@pytest.mark.parametrize("time", VECTORS["event_timestamps"], ids=lambda time: time["event_timestamp"])
def test_event_times_are_read_as_feast_writes_them(time: dict) -> None:
    assert decode_timestamp(bytes.fromhex(time["hex"])) == epoch(time["event_timestamp"])


@pytest.mark.parametrize("value", VECTORS["values"], ids=lambda value: f"{value['type']}-{value['hex'][:24]}")
def test_values_are_read_as_feast_reads_them(value: dict) -> None:
    data = bytes.fromhex(value["hex"])
    if value["type"] == "bytes" and value["read"] is not None:
        with pytest.raises(ValueError, match="not a scalar"):
            decode_value(data)
        return
    expected = read_by_feast(value["type"], value["read"])
    got = decode_value(data)
    assert (got, str(got)) == (expected, str(expected))  # -0.0 is not 0.0
    kind = value["type"]
    if kind == "string":
        assert TextCache()[data] == expected
        return
    assert NumberCache()[data] == expected


def shop_of(views: list[dict], join_key: dict) -> FeatureContract:
    """Return a contract of views of one entity."""
    return parse_contract(
        {
            "name": "vectors_v1",
            "version": 1,
            "entities": [{"name": "e", "join_key": join_key["name"], "type": join_key["type"]}],
            "views": [{"entity": "e", "ttl_seconds": 86400, **view} for view in views],
            "features": [],
        }
    )


@pytest.mark.parametrize("row", VECTORS["rows"], ids=lambda row: row["name"])
def test_rows_are_read_as_feast_reads_them_alone_and_among_others(row: dict) -> None:
    [join_key] = row["join_keys"]
    views = [
        {"name": name, "fields": [{"name": f, "type": kind} for f, kind in view["types"].items()]}
        for name, view in row["views"].items()
    ]
    reader = FeatureReader(shop_of(views, join_key), row["project"])
    store = {bytes.fromhex(row["key"]): {bytes.fromhex(k): bytes.fromhex(v) for k, v in row["hash"].items()}}
    as_of = max(
        (epoch(v["event_timestamp"]) for v in row["views"].values() if v["event_timestamp"]), default=0
    )
    command, _ = reader.command({join_key["name"]: join_key["value"]})
    alone = reader.decode(replies_to(store, command), as_of)
    commands, _, _ = reader.commands({join_key["name"]: [0, join_key["value"]]})
    among = reader.decode_many(replies_to(store, commands), as_of)
    for name, view in row["views"].items():
        time, read = view["event_timestamp"], view["read"]
        status = "missing" if time is None else "null" if None in read.values() else "present"
        assert alone.status[name] == STATUSES[among.views[name].status[1]] == status
        assert alone.event_timestamps[name] == (None if time is None else epoch(time))
        for field, value in read.items():
            expected = read_by_feast(view["types"][field], value)
            assert alone.values.get(field) == expected
            found = among.values[field][1]
            assert found == expected or (expected is None and (found is None or found != found))


def test_murmur3_reference_values() -> None:
    """From the reference implementation's verification tables."""
    assert murmur3_32(b"") == 0
    assert murmur3_32(b"", 1) == 0x514E28B7
    assert murmur3_32(b"\xff\xff\xff\xff") == 0x76293B50
    assert murmur3_32(b"!Ce\x87") == 0xF55B516B
    assert murmur3_32(b"!Ce") == 0x7E4A8634
    assert murmur3_32(b"The quick brown fox jumps over the lazy dog", 0x9747B28C) == 0x2FA826CD


@given(
    st.one_of(
        st.none(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
)
def test_values_round_trip(value: object) -> None:
    assert decode_value(encoded_value(value)) == value


@given(st.integers(-4 * 10**15, 9 * 10**15) | st.integers(16 * 10**14, 21 * 10**14))
def test_timestamps_round_trip_to_the_microsecond(microseconds: int) -> None:
    """To the bit: both ways of Python's own `datetime.timestamp` round once."""
    whole, rest = divmod(microseconds, 10**6)
    data = timestamp_message(whole, rest * 1000)
    assert decode_timestamp(data) == microseconds / 1e6
    assert decode_timestamp(data) == TimestampCache()[data]


@given(st.integers(-(2**40), 2**40), st.integers(0, 10**9 - 1))
def test_timestamps_of_any_length_are_read(seconds: int, nanos: int) -> None:
    assert decode_timestamp(timestamp_message(seconds, nanos)) == (seconds * 10**9 + nanos) / 10**9


@given(st.binary(max_size=20))
def test_other_bytes_are_read_or_refused_never_worse(data: bytes) -> None:
    for decode in (decode_value, decode_timestamp):
        try:
            decode(data)
        except ValueError:
            continue


def test_what_is_kept_is_bounded_and_long_values_are_not() -> None:
    numbers, texts, times = NumberCache(), TextCache(), TimestampCache()
    for number in range(MAX_KEPT_VALUES + 10):
        assert numbers[encoded_value(number)] == number
    assert len(numbers) == 10
    assert texts[encoded_value("x" * 300)] == "x" * 300
    assert not texts
    assert (times[encoded_timestamp(86400.0)], times[encoded_timestamp(NOON + 0.5)]) == (86400.0, NOON + 0.5)
    assert len(times) == 1
    assert math.isnan(times[None])


def test_text_is_no_number_and_a_number_no_text() -> None:
    with pytest.raises(ValueError, match="not a number"):
        NumberCache()[encoded_value("12")]
    with pytest.raises(ValueError, match="not text"):
        TextCache()[encoded_value(12)]


moments = st.integers(-4 * 10**18, 9 * 10**18) | st.integers(16 * 10**17, 21 * 10**17).map(
    lambda n: n // 1000 * 1000
)


@settings(deadline=None)
@given(st.lists(st.none() | moments, min_size=1, max_size=20))
def test_event_times_of_many_rows_are_those_of_each(nanoseconds: list[int | None]) -> None:
    shop = shop_of([{"name": "v", "fields": []}], {"name": "shop_id", "type": "int64"})
    reader, store = FeatureReader(shop, "p"), {}
    for shop_id, at in enumerate(nanoseconds):
        if at is not None:
            store[entity_key("shop_id", shop_id, "p")] = {
                timestamp_field("v"): timestamp_message(*divmod(at, 10**9))
            }
    commands, _, _ = reader.commands({"shop_id": range(len(nanoseconds))})
    times = reader.decode_many(replies_to(store, commands), 0.0).views["v"].event_timestamps
    for at, time in zip(nanoseconds, times.tolist(), strict=True):
        assert math.isnan(time) if at is None else time == at / 10**9
