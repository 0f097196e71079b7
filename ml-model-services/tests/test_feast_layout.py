from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_testkit import contract, encoded_timestamp, encoded_value

from common_service_libs.feast_layout import (
    decode_timestamp,
    decode_value,
    entity_key,
    field_name,
    murmur3_32,
    timestamp_field,
)

GOLDEN = json.loads((Path(__file__).parent / "golden_feast_bytes.json").read_text())


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: row["view"])
def test_bytes_that_feast_wrote_are_found_and_read(row: dict) -> None:
    document = contract(row["contract"])
    view = next(view for view in document.views if view.name == row["view"])
    join_key = next(entity.join_key for entity in document.entities if entity.name == view.entity)
    stored = {bytes.fromhex(field): bytes.fromhex(value) for field, value in row["hash"].items()}

    assert entity_key(join_key, row["entity"], GOLDEN["project"]).hex() == row["key"]
    assert decode_timestamp(stored[timestamp_field(view.name)]) == row["event_timestamp"]
    for field in view.fields:
        assert decode_value(stored[field_name(view.name, field.name)]) == row["read"][field.name]


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


@given(st.integers(0, 4 * 10**15))
def test_timestamps_round_trip_to_the_microsecond(microseconds: int) -> None:
    seconds = microseconds / 1e6
    assert abs(decode_timestamp(encoded_timestamp(seconds)) - seconds) < 1e-6


@given(st.binary(max_size=20))
def test_other_bytes_are_read_or_refused_never_worse(data: bytes) -> None:
    for decode in (decode_value, decode_timestamp):
        try:
            decode(data)
        except ValueError:
            continue
