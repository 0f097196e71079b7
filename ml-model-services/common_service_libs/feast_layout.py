"""The bytes that Feast keeps in Redis (entity key serialization 3), written and read without Feast.

One hash per entity. Key: number of join keys, then for each its type, length and name, then for each value
its type, length and bytes (all little-endian 32-bit numbers), then the project's name. Field: murmur3 of
`view:feature`, four bytes little-endian; `_ts:view` holds the event time. Values are protobuf messages with
one field set.
"""

from __future__ import annotations

import math
import struct

STRING_TYPE = 2
INT64_TYPE = 4

FeatureValue = float | str | None
EntityValue = int | str

_DOUBLE = struct.Struct("<d")
_FLOAT = struct.Struct("<f")
_INT64 = struct.Struct("<q")
_MASK = 0xFFFFFFFF

INT64_HEAD = struct.pack("<II", INT64_TYPE, _INT64.size)
"""What precedes the eight bytes of an int64 value in a key."""

# What the continuation bits of a varint of four or five bytes add to the sum of its shifted bytes.
_THREE_HIGH_BITS = 0x80 * (1 + (1 << 7) + (1 << 14))
_FOUR_HIGH_BITS = _THREE_HIGH_BITS + (0x80 << 21)

WHOLE_SECONDS_BYTES = 6
"""The length of an event time of whole seconds, between 1978 and 3058."""

MAX_KEPT_BYTES = 64
MAX_KEPT_VALUES = 1 << 16

# Field numbers of feast.types.Value that hold one scalar.
_STRING, _INT32, _INT64_FIELD, _DOUBLE_FIELD, _FLOAT_FIELD, _BOOL, _UNIX_TIMESTAMP = 2, 3, 4, 5, 6, 7, 8
_VARINTS = frozenset({_INT32, _INT64_FIELD, _BOOL, _UNIX_TIMESTAMP})
_NULL = 19
_NULL_TIME = -(1 << 63)  # what NumPy calls "not a time", and Feast writes for a null time
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def murmur3_32(data: bytes, seed: int = 0) -> int:
    """Return MurmurHash3 x86 32-bit of `data` as an unsigned number (Austin Appleby, public domain).

    >>> hex(murmur3_32(b"hello"))
    '0x248bfa47'
    """
    h = seed
    whole = len(data) & ~3
    for (k,) in struct.iter_unpack("<I", data[:whole]):
        h ^= _scrambled(k)
        h = ((h << 13) | (h >> 19)) & _MASK
        h = (h * 5 + 0xE6546B64) & _MASK
    if tail := data[whole:]:
        h ^= _scrambled(int.from_bytes(tail, "little"))
    h ^= len(data)
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK
    return h ^ (h >> 16)


def _scrambled(k: int) -> int:
    k = (k * 0xCC9E2D51) & _MASK
    k = ((k << 15) | (k >> 17)) & _MASK
    return (k * 0x1B873593) & _MASK


def field_name(view: str, feature: str) -> bytes:
    """Return the hash field of one feature of one view."""
    return struct.pack("<I", murmur3_32(f"{view}:{feature}".encode()))


def timestamp_field(view: str) -> bytes:
    """Return the hash field that holds the event time of a view."""
    return f"_ts:{view}".encode()


def key_head(join_key: str) -> bytes:
    """Return what precedes the value in the key of an entity with one join key."""
    name = join_key.encode()
    return struct.pack("<III", 1, STRING_TYPE, len(name)) + name


def key_value(value: EntityValue) -> bytes:
    """Return the value of a join key, as its key holds it: type, length, bytes.

    Raises ValueError for a number beyond 64 bits, or text that is no Unicode.
    """
    if isinstance(value, str):
        text = value.encode()
        return struct.pack("<II", STRING_TYPE, len(text)) + text
    try:
        return INT64_HEAD + _INT64.pack(value)
    except struct.error:
        raise ValueError(f"a key of type {type(value).__name__} is no 64-bit integer") from None


def entity_key(join_key: str, value: EntityValue, project: str) -> bytes:
    """Return the Redis key of one entity; a text value makes a string key, a number an int64 key."""
    return key_head(join_key) + key_value(value) + project.encode()


def decode_value(data: bytes | None) -> FeatureValue:
    """Return the scalar in a serialized value: numbers as float, text as str, unset or null as None.

    Raises ValueError for bytes that are no such message.

    >>> [decode_value(bytes.fromhex(data)) for data in ("29000000000000f83f", "2005", "")]
    [1.5, 5.0, None]
    """
    if not data:
        return None
    if data[0] == 0x29 and len(data) == 9:
        value: float = _DOUBLE.unpack_from(data, 1)[0]
        return None if value != value else value
    if data[0] == 0x20 and len(data) == 2 and data[1] < 0x80:
        return float(data[1])
    try:
        return _decode_any(data)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a feature value: {error}") from None


def _decode_any(data: bytes) -> FeatureValue:
    tag, at = _varint(data, 0)
    field, wire = tag >> 3, tag & 7
    result: FeatureValue
    if wire == _VARINT and (field in _VARINTS or field == _NULL):
        number, at = _varint(data, at)
        number -= (1 << 64) if number >= 1 << 63 else 0
        null = field == _NULL or (field == _UNIX_TIMESTAMP and number == _NULL_TIME)
        result = None if null else float(number)
    elif wire == _FIXED64 and field == _DOUBLE_FIELD:
        result, at = _DOUBLE.unpack_from(data, at)[0], at + 8
    elif wire == _FIXED32 and field == _FLOAT_FIELD:
        result, at = _FLOAT.unpack_from(data, at)[0], at + 4
    elif wire == _BYTES and field == _STRING:
        length, at = _varint(data, at)
        result, at = data[at : at + length].decode(), at + length
    else:
        raise ValueError(f"not a scalar feature value: field {field}, wire type {wire}")
    if at != len(data):
        raise ValueError("not a feature value: wrong length")
    return None if isinstance(result, float) and math.isnan(result) else result


def decode_timestamp(data: bytes) -> float:
    """Return the epoch seconds in a serialized protobuf Timestamp; raises ValueError for other bytes."""
    # The common forms, unrolled: five bytes for the seconds (1978 to 3058), five or four for the fraction.
    if len(data) == 12:
        tag, a, b, c, d, e, fraction_tag, f, g, h, i, j = data
        if tag == 0x08 and fraction_tag == 0x10 and a & b & c & d & f & g & h & i & 0x80 and (e | j) < 0x80:
            nanos = f + (g << 7) + (h << 14) + (i << 21) + (j << 28) - _FOUR_HIGH_BITS
            if nanos % 1000 == 0:
                seconds = a + (b << 7) + (c << 14) + (d << 21) + (e << 28) - _FOUR_HIGH_BITS
                return (seconds * 1_000_000 + nanos // 1000) / 1_000_000
    elif len(data) == 11:
        tag, a, b, c, d, e, fraction_tag, f, g, h, i = data
        if tag == 0x08 and fraction_tag == 0x10 and a & b & c & d & f & g & h & 0x80 and (e | i) < 0x80:
            nanos = f + (g << 7) + (h << 14) + (i << 21) - _THREE_HIGH_BITS
            if nanos % 1000 == 0:
                seconds = a + (b << 7) + (c << 14) + (d << 21) + (e << 28) - _FOUR_HIGH_BITS
                return (seconds * 1_000_000 + nanos // 1000) / 1_000_000
    return _decode_any_timestamp(data)


def _decode_any_timestamp(data: bytes) -> float:
    at = seconds = nanos = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            number, at = _varint(data, at)
            if tag == 0x08:
                seconds = number - (1 << 64) if number >= 1 << 63 else number
            elif tag == 0x10:
                nanos = number
            else:
                raise ValueError(f"not a timestamp: tag {tag}")
    except IndexError:
        raise ValueError("not a timestamp: cut off") from None
    return (seconds * 1_000_000_000 + nanos) / 1_000_000_000  # of whole numbers, so rounded once


class NumberCache(dict[bytes | None, float | None]):
    """Decodes serialized numbers and keeps what is short: counts and days repeat all the time.

    Null is None; raises ValueError for bytes that are no number. At most `MAX_KEPT_VALUES` are kept.
    """

    def __missing__(self, data: bytes | None) -> float | None:
        if data is not None and len(data) == 3 and data[0] == 0x20 and data[2] < 0x80 <= data[1]:
            number: float | None = float(data[1] + (data[2] << 7) - 0x80)  # an int64 of 128 to 16383
        else:
            value = decode_value(data)
            if isinstance(value, str):
                raise ValueError("not a number but text")
            number = value
        if len(self) >= MAX_KEPT_VALUES:
            self.clear()  # what repeats is soon back; what does not would stay for ever
        self[data] = number
        return number


class TextCache(dict[bytes | None, str | None]):
    """As `NumberCache`, for text: categories repeat too, long texts are not kept."""

    def __missing__(self, data: bytes | None) -> str | None:
        value = decode_value(data)
        if isinstance(value, float):
            raise ValueError("not text but a number")
        if data is None or len(data) <= MAX_KEPT_BYTES:
            if len(self) >= MAX_KEPT_VALUES:
                self.clear()
            self[data] = value
        return value


class TimestampCache(dict[bytes | None, float]):
    """Decodes event times; keeps whole seconds, which repeat: midnights. NaN where there is none."""

    def __missing__(self, data: bytes | None) -> float:
        if data is None:
            return math.nan
        value = decode_timestamp(data)
        if len(data) <= WHOLE_SECONDS_BYTES:
            if len(self) >= MAX_KEPT_VALUES:
                self.clear()
            self[data] = value
        return value


class ValueCaches:
    """The caches of one reader."""

    def __init__(self) -> None:
        self.numbers, self.texts, self.times = NumberCache(), TextCache(), TimestampCache()


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")
