"""Feast's Redis layout for columns of rows at once: keys, values and times as NumPy matrices of bytes.

A row is one hash. Its key is the entity key (serialization 3) and the project. A field's name is the murmur3
hash of `view:feature`, its value a serialized `feast.types.Value`; the field `_ts:view` holds the row's time,
serialized as a `google.protobuf.Timestamp`. Feast's own code for it: `feast/infra/online_stores/redis.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Column: TypeAlias = NDArray[Any] | pa.Array | pa.ChunkedArray

MICROSECONDS = 1_000_000
# What protobuf's Timestamp and Python's datetime can hold: years 1 to 9999, in microseconds since 1970.
FIRST_TIME_US = -62_135_596_800 * MICROSECONDS
LAST_TIME_US = 253_402_300_800 * MICROSECONDS - 1
# Feast writes a null time as NumPy's NaT, and reads it as null.
NULL_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Part:
    """Bytes of every row at one place: row i has `lengths[i]` of `data[i]`, or of the only `data[0]`."""

    data: Bytes
    lengths: Integers

    @property
    def width(self) -> int:
        """The most bytes that a row can have here."""
        return self.data.shape[1]


def constant(text: bytes, rows: int, present: NDArray[np.bool_] | None = None) -> Part:
    """Return the same bytes for every row, or for those where `present`."""
    lengths = np.full(rows, len(text)) if present is None else np.where(present, len(text), 0)
    return Part(np.frombuffer(text, np.uint8)[None, :], lengths)


def join_rows(parts: Sequence[Part], rows: int) -> tuple[bytes, Integers]:
    """Return the rows' bytes one after the other, each row's parts joined, and where every row ends."""
    width = sum(part.width for part in parts)
    out = np.empty((rows, width), np.uint8)
    used = np.ones((rows, width), np.bool_)
    at, lengths = 0, np.zeros(rows, np.int64)
    for part in parts:
        place = slice(at, at + part.width)
        out[:, place] = part.data
        if rows and part.lengths.min() < part.width:
            used[:, place] = np.arange(part.width) < part.lengths[:, None]
        at += part.width
        lengths += part.lengths
    return out[used].tobytes(), np.cumsum(lengths)


def decimal_digits(numbers: Integers) -> Part:
    """Return numbers from 0 on in decimal ASCII."""
    width = len(str(int(numbers.max()))) if len(numbers) else 1
    lengths = np.ones(len(numbers), np.int64)
    for power in range(1, width):
        lengths += numbers >= 10**power
    # Digit j from the left is worth 10 ** (length - 1 - j); beyond the length nothing is read.
    exponents = np.maximum(lengths[:, None] - 1 - np.arange(width), 0)
    return Part((numbers[:, None] // 10**exponents % 10 + ord("0")).astype(np.uint8), lengths)


def bulk(parts: Sequence[Part], rows: int) -> list[Part]:
    """Return the parts as one RESP bulk string a row: `$<length>\\r\\n<bytes>\\r\\n`."""
    lengths = sum((part.lengths for part in parts), np.zeros(rows, np.int64))
    return [
        constant(b"$", rows),
        decimal_digits(lengths),
        constant(b"\r\n", rows),
        *parts,
        constant(b"\r\n", rows),
    ]


def varint(numbers: Integers, present: NDArray[np.bool_] | None = None) -> Part:
    """Return protobuf varints; a negative number takes ten bytes, as two's complement of 64 bits."""
    unsigned = numbers.astype(np.int64).view(np.uint64)
    bits = int(unsigned.max()).bit_length() if len(unsigned) else 1
    width = max(1, -(-bits // 7))
    shifted = unsigned[:, None] >> (7 * np.arange(width, dtype=np.uint64))
    lengths = 1 + np.count_nonzero(shifted[:, 1:], axis=1)
    data = (shifted & 0x7F).astype(np.uint8)
    data |= np.where(np.arange(1, width + 1) < lengths[:, None], 0x80, 0).astype(np.uint8)
    return Part(data, lengths if present is None else np.where(present, lengths, 0))


def fixed_width(numbers: NDArray[Any], present: NDArray[np.bool_] | None = None) -> Part:
    """Return the little-endian bytes of each number."""
    little = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<"))
    size = little.dtype.itemsize
    lengths = np.full(len(little), size) if present is None else np.where(present, size, 0)
    return Part(little.view(np.uint8).reshape(len(little), size), lengths)


def texts(column: pa.Array) -> Part:
    """Return the bytes of an Arrow column of strings or binaries; those of a null are none."""
    values = pc.fill_null(column.cast(pa.large_binary()), b"")
    buffers = values.buffers()
    offsets = np.frombuffer(buffers[1], np.int64)[values.offset : values.offset + len(values) + 1]
    lengths = np.diff(offsets)
    data = np.zeros((len(values), int(lengths.max(initial=0))), np.uint8)
    if data.size:
        characters = np.frombuffer(buffers[2], np.uint8)[offsets[0] : offsets[-1]]
        data[np.arange(data.shape[1]) < lengths[:, None]] = characters
    return Part(data, lengths)


def longest_text(column: pa.Array) -> int:
    """Return the most bytes of a value of a column of strings or binaries, 0 for other columns."""
    if not _is_text(column.type):
        return 0
    return pc.max(pc.binary_length(column)).as_py() or 0


def check_times(microseconds: Integers) -> None:
    """Raise ValueError for a time that no Timestamp can hold."""
    if len(microseconds) and not FIRST_TIME_US <= microseconds.min() <= microseconds.max() <= LAST_TIME_US:
        raise ValueError("an event time lies outside the years 1 to 9999")


def timestamps(microseconds: Integers) -> list[Part]:
    """Return serialized Timestamps of microseconds since 1970, UTC."""
    seconds = microseconds // MICROSECONDS
    nanoseconds = (microseconds - seconds * MICROSECONDS) * 1000
    parts = []
    for tag, numbers in ((b"\x08", seconds), (b"\x10", nanoseconds)):
        present = numbers != 0
        parts += [constant(tag, len(numbers), present), varint(numbers, present)]
    return parts


def field_name(view: str, feature: str) -> bytes:
    """Return the hash field of a feature.

    >>> field_name("customer_daily", "customer_tx_count_full_1d").hex()
    'b06edd5f'
    """
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def time_field(view: str) -> bytes:
    """Return the hash field of a row's time."""
    return f"_ts:{view}".encode()


def entity_keys(join_key: str, values: pa.Array, project: str) -> list[Part]:
    """Return the rows' keys; TypeError where the values' type can't be an entity's, ValueError for a null."""
    if values.null_count:
        raise ValueError(f"{join_key}: an entity id is null")
    rows, name = len(values), join_key.encode()
    head = struct.pack("<III", 1, VALUE_TYPE_STRING, len(name)) + name
    if pa.types.is_int64(values.type) or pa.types.is_int32(values.type):
        wide = pa.types.is_int64(values.type)
        kind, ids = VALUE_TYPE_INT64 if wide else VALUE_TYPE_INT32, fixed_width(values.to_numpy())
    elif _is_text(values.type):
        kind = VALUE_TYPE_BYTES if _is_binary(values.type) else VALUE_TYPE_STRING
        ids = texts(values)
    else:
        raise TypeError(f"{join_key}: entity ids are {values.type}, not int64, int32, string or binary")
    size = fixed_width(ids.lengths.astype(np.uint32))
    return [constant(head + struct.pack("<I", kind), rows), size, ids, constant(project.encode(), rows)]


# Numbers of feast.types.ValueType.
VALUE_TYPE_BYTES, VALUE_TYPE_STRING, VALUE_TYPE_INT32, VALUE_TYPE_INT64 = 1, 2, 3, 4


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(_is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _integer_values(column: pa.Array) -> list[Part]:
    present = _present(column)
    numbers = pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return [constant(b"\x18" if column.type.bit_width == 32 else b"\x20", len(column), present),
            varint(numbers, present)]  # fmt: skip


def _float_values(column: pa.Array) -> list[Part]:
    # As in Feast, where a column passes through NumPy: NaN is null.
    numbers = pc.fill_null(column, float("nan")).to_numpy(zero_copy_only=False)
    present = ~np.isnan(numbers)
    tag = b"\x29" if numbers.dtype == np.float64 else b"\x35"
    return [constant(tag, len(column), present), fixed_width(numbers, present)]


def _boolean_values(column: pa.Array) -> list[Part]:
    present = _present(column)
    truths = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
    return [constant(b"\x38", len(column), present), fixed_width(truths.view(np.uint8), present)]


def _text_values(column: pa.Array) -> list[Part]:
    present = _present(column)
    content = texts(column)
    tag = b"\x0a" if _is_binary(column.type) else b"\x12"
    return [constant(tag, len(column), present), varint(content.lengths, present), content]


def _time_values(column: pa.Array) -> list[Part]:
    numbers = column.cast(pa.int64())
    seconds = pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False) // MICROSECONDS
    return [constant(b"\x40", len(column)), varint(np.where(_present(column), seconds, NULL_TIME))]


def _present(column: pa.Array) -> NDArray[np.bool_]:
    present: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return present


@dataclass(frozen=True)
class ValueType:
    """How a feature type is held in Arrow, and the serialized Values of its column: a null is no bytes."""

    arrow: pa.DataType
    encode: Callable[[pa.Array], list[Part]]


# By the contract's names of types.
VALUE_TYPES = {
    "int32": ValueType(pa.int32(), _integer_values),
    "int64": ValueType(pa.int64(), _integer_values),
    "float32": ValueType(pa.float32(), _float_values),
    "float64": ValueType(pa.float64(), _float_values),
    "bool": ValueType(pa.bool_(), _boolean_values),
    "string": ValueType(pa.large_string(), _text_values),
    "bytes": ValueType(pa.large_binary(), _text_values),
    "unix_timestamp": ValueType(pa.timestamp("us", "UTC"), _time_values),
}


def arrow_column(name: str, kind: str, column: Column) -> pa.Array:
    """Return a column as the Arrow type of a feature type; TypeError where values would change."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    wanted = VALUE_TYPES[kind].arrow
    try:
        array = column if isinstance(column, pa.Array) else pa.array(column)
        if pa.types.is_null(array.type):
            return array.cast(wanted)
        if not _is_safe(array.type, wanted):
            raise TypeError(f"{name}: {array.type} values for a feature of type {kind}")
        if pa.types.is_timestamp(array.type):
            # Times without a zone are UTC. Feast keeps whole seconds, so nanoseconds need not be kept here.
            return array.cast(pa.timestamp("us", array.type.tz), safe=False).cast(wanted)
        return array.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise TypeError(f"{name}: no {kind} values: {error}") from None


def _is_safe(have: pa.DataType, wanted: pa.DataType) -> bool:
    if have == wanted:
        return True
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(have))
    if pa.types.is_floating(wanted):
        narrow = wanted.bit_width < 64
        return bool(
            (pa.types.is_floating(have) and have.bit_width <= wanted.bit_width)
            or (pa.types.is_integer(have) and not narrow)
        )
    if pa.types.is_timestamp(wanted):
        return bool(pa.types.is_timestamp(have))
    return _is_text(have) and _is_text(wanted) and _is_binary(have) == _is_binary(wanted)
