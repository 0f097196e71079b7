"""Rows of a feature view into Redis: Feast's bytes, vectorised, and never over a newer row.

A row's fields and its time are written by one script on the server, together or not at all, and only where
the row that stands there is older (or, as `ties` says, of the same time). Writers may race: in whatever order
they come, the newest row stays, whole.

A call of the script takes many rows, so that Redis parses few commands. On Redis Cluster a call takes one
row, for the keys of a call must lie on one node, and goes through the client's own pipeline, which follows
moved slots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import NoScriptError, ResponseError

from fast_redis_layout import (
    VALUE_TYPES,
    Column,
    Integers,
    arrow_column,
    bulk,
    check_times,
    entity_keys,
    field_name,
    join_rows,
    longest_text,
    time_field,
    timestamps,
)

Client: TypeAlias = Redis | RedisCluster
Ties = Literal["newer", "same_or_newer", "always"]

# What a call writes is about half a millisecond of the server's time: reads wait no longer than that.
ROWS_A_CALL = 64
ROWS_A_CHUNK = 8_192
CHUNK_BYTES = 32 * 2**20
ATTEMPTS = 3
# A call in Lua takes no more than about 250 arguments.
PAIRS_A_CALL = 100

# KEYS: one a row. ARGV: ties, seconds to expiry (0: never), then the values of each row, the time first.
# Returns how many rows were written. The names of the hash fields stand in the script: Redis would make them
# anew for each row.
SCRIPT = """
local function varint(text, at)
  local value, complement, scale = 0, 0, 1
  for count = 1, 10 do
    local byte = string.byte(text, at)
    if not byte then return nil end
    at = at + 1
    -- Ten bytes are a negative number; the complement of the first nine groups is small, and so exact.
    if count == 10 then return -complement - 1, at end
    local low = byte % 128
    value, complement, scale = value + low * scale, complement + (127 - low) * scale, scale * 128
    if byte < 128 then return value, at end
  end
end

-- Seconds and nanoseconds of a serialized Timestamp; nothing where it is none.
local function decode(text)
  local seconds, nanoseconds, at = 0, 0, 1
  while at <= #text do
    local tag, number = string.byte(text, at), nil
    number, at = varint(text, at + 1)
    if not number then return nil end
    if tag == 8 then seconds = number elseif tag == 16 then nanoseconds = number else return nil end
  end
  return seconds, nanoseconds
end

local function is_newer(new, old)
  local old_seconds, old_nanoseconds = decode(old)
  if not old_seconds then return true end
  local seconds, nanoseconds = decode(new)
  if seconds ~= old_seconds then return seconds > old_seconds end
  return nanoseconds > old_nanoseconds
end

local argv, keys, call = ARGV, KEYS, redis.call
local ties, expiry = argv[1], tonumber(argv[2])
local at, written = 2, 0
for i = 1, #keys do
  local key, new = keys[i], argv[at + 1]
  local old = ties ~= 'always' and call('HGET', key, TIME_FIELD)
  if not old or (old == new and ties == 'same_or_newer') or (old ~= new and is_newer(new, old)) then
    SET_THE_FIELDS
    if expiry > 0 then call('EXPIRE', key, expiry) end
    written = written + 1
  end
  at = at + FIELD_COUNT
end
return written
"""


@cache
def script(fields: tuple[bytes, ...]) -> tuple[str, bytes]:
    """Return the script that writes rows of these hash fields, the time's first, and its SHA-1."""
    names = ["'" + "".join(f"\\{byte:03d}" for byte in field) + "'" for field in fields]
    pairs = [f"{name}, argv[at + {place}]" for place, name in enumerate(names, start=1)]
    sets = [
        f"call('HSET', key, {', '.join(pairs[first : first + PAIRS_A_CALL])})"
        for first in range(0, len(pairs), PAIRS_A_CALL)
    ]
    text = SCRIPT.replace("TIME_FIELD", names[0]).replace("SET_THE_FIELDS", "\n    ".join(sets))
    text = text.replace("FIELD_COUNT", str(len(fields)))
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode()


@dataclass(frozen=True)
class Encoded:
    """Rows as RESP: their keys and their values (time first), and where each row ends in either."""

    keys: bytes
    key_ends: Integers
    values: bytes
    value_ends: Integers

    def __len__(self) -> int:
        return len(self.key_ends)


def encode_items(keys: Sequence[bytes], rows: Sequence[Sequence[bytes]]) -> Encoded:
    """Return rows whose keys and values are serialized already; a row's values begin with its time."""
    key_texts = [_bulk(key) for key in keys]
    value_texts = [b"".join(map(_bulk, row)) for row in rows]
    return Encoded(
        b"".join(key_texts),
        np.cumsum([len(text) for text in key_texts], dtype=np.int64),
        b"".join(value_texts),
        np.cumsum([len(text) for text in value_texts], dtype=np.int64),
    )


def bulk_strings(text: bytes) -> list[bytes]:
    """Return the strings of RESP bulk strings that stand one after the other.

    >>> bulk_strings(b"$2\\r\\nab\\r\\n$0\\r\\n\\r\\n")
    [b'ab', b'']
    """
    found, at = [], 0
    while at < len(text):
        start = text.index(b"\r\n", at) + 2
        end = start + int(text[at + 1 : start - 2])
        found.append(text[start:end])
        at = end + 2
    return found


def _bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


class ScriptCaller:
    """Sends encoded rows of one list of hash fields to the script, on a connection of the client's pool."""

    def __init__(
        self, client: Client, fields: Sequence[bytes], ties: Ties, key_ttl_seconds: int | None = None
    ) -> None:
        self._client = client
        self._script, self._sha = script(tuple(fields))
        self._arguments = [ties.encode(), b"%d" % (key_ttl_seconds or 0)]
        self._head = b"".join(map(_bulk, self._arguments))
        self._fields = len(fields)

    def write(self, chunks: Iterable[Encoded]) -> int:
        """Return how many rows were written; while Redis works on a chunk, the next one is made."""
        if isinstance(self._client, RedisCluster):
            self._client.script_load(self._script)
            return sum(self._write_to_cluster(self._client, chunk) for chunk in chunks)
        connection = self._client.connection_pool.get_connection()
        try:
            written = self._send(connection, map(self._calls, chunks))
        except BaseException:
            # Replies may be on their way: nobody else may read them.
            connection.disconnect()
            raise
        finally:
            self._client.connection_pool.release(connection)
        return written

    def _send(self, connection: Any, chunks: Iterable[list[bytes]]) -> int:
        written = 0
        missed: list[bytes] = []
        for _ in range(ATTEMPTS):
            connection.send_command("SCRIPT", "LOAD", self._script, check_health=False)
            connection.read_response()
            unanswered: list[bytes] = []
            for calls in chunks:
                # Without redis-py's health check: its reply would stand behind those of the calls.
                connection.send_packed_command([b"".join(calls)], check_health=False)
                written += _replies(connection, unanswered, missed)
                unanswered = calls
            written += _replies(connection, unanswered, missed)
            if not missed:
                return written
            # The script was gone (SCRIPT FLUSH, a failover) when these came.
            chunks, missed = [missed], []
        raise NoScriptError("Redis forgot the script again and again while rows were written")

    def _write_to_cluster(self, cluster: RedisCluster, rows: Encoded) -> int:
        keys, values = bulk_strings(rows.keys), bulk_strings(rows.values)
        pipeline = cluster.pipeline()
        calls = [
            (1, key, *self._arguments, *values[at * self._fields : (at + 1) * self._fields])
            for at, key in enumerate(keys)
        ]
        for call in calls:
            pipeline.execute_command("EVALSHA", self._sha, *call)
        written = 0
        for call, reply in zip(calls, pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(reply, NoScriptError):
                written += cluster.execute_command("EVAL", self._script, *call)
            elif isinstance(reply, Exception):
                raise reply
            else:
                written += reply
        return written

    def _calls(self, rows: Encoded) -> list[bytes]:
        keys, values = memoryview(rows.keys), memoryview(rows.values)
        key_at, value_at, calls = 0, 0, []
        for first in range(0, len(rows), ROWS_A_CALL):
            last = min(first + ROWS_A_CALL, len(rows)) - 1
            count, key_end, value_end = last - first + 1, int(rows.key_ends[last]), int(rows.value_ends[last])
            words = 3 + count + len(self._arguments) + count * self._fields
            head = b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % (words, self._sha)
            calls.append(
                b"".join(
                    (
                        head,
                        _bulk(b"%d" % count),
                        keys[key_at:key_end],
                        self._head,
                        values[value_at:value_end],
                    )
                )
            )
            key_at, value_at = key_end, value_end
        return calls


def _replies(connection: Any, calls: list[bytes], missed: list[bytes]) -> int:
    """Read a reply for each call and return the rows written; calls that found no script go to `missed`.

    Every reply is read before an error is raised.
    """
    written, failure = 0, None
    for call in calls:
        try:
            written += connection.read_response()
        except NoScriptError:
            missed.append(call)
        except ResponseError as error:
            failure = error
    if failure is not None:
        raise failure
    return written


class RedisRowWriter:
    """Writes rows of one feature view whose entity has one join key.

    `fields` are names and types of features: the contracts' types and the others of
    `fast_redis_layout.VALUE_TYPES`. `key_ttl_seconds` lets Redis drop a key that long after its last write.
    Threads may share a writer.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (what a row's key and fields are made of)
        self,
        client: Client,
        project: str,
        view_name: str,
        join_key: str,
        fields: Sequence[tuple[str, str]],
        key_ttl_seconds: int | None = None,
    ) -> None:
        if unknown := sorted({kind for _, kind in fields} - VALUE_TYPES.keys()):
            raise ValueError(f"{view_name}: no such type: {', '.join(unknown)}")
        self._client, self._project, self._join_key = client, project, join_key
        self._fields = list(fields)
        self._hash_fields = [time_field(view_name), *(field_name(view_name, name) for name, _ in fields)]
        self._key_ttl_seconds = key_ttl_seconds

    def write(
        self,
        entity_ids: Column,
        event_timestamps_us: NDArray[np.int64],
        columns: Mapping[str, Column],
        ties: Ties,
    ) -> int:
        """Write one row for each entity id, and return how many rows were: the others met a newer one.

        Times are microseconds since 1970, UTC. `ties` says what a row of the same time does to the one that
        stands: `newer` leaves it, `same_or_newer` replaces it; `always` replaces any. A null (None, NaN or
        Arrow's) is written as Feast writes it. Every column has a value a row; KeyError names a column that
        is missing, ValueError and TypeError one that does not fit, before anything is written.
        """
        rows = self.encode(entity_ids, event_timestamps_us, columns)
        caller = ScriptCaller(self._client, self._hash_fields, ties, self._key_ttl_seconds)
        return caller.write(rows)

    def encode(
        self, entity_ids: Column, event_timestamps_us: NDArray[np.int64], columns: Mapping[str, Column]
    ) -> Iterator[Encoded]:
        """Return the rows as `write` sends them, in chunks of bounded size; columns are checked first."""
        ids = _entity_ids(self._join_key, entity_ids)
        times = np.asarray(event_timestamps_us)
        if times.dtype != np.int64:
            raise TypeError(f"event times are {times.dtype}, not int64 microseconds")
        arrays = [arrow_column(name, kind, columns[name]) for name, kind in self._fields]
        names = ["event times", *(name for name, _ in self._fields)]
        for name, values in zip(names, [times, *arrays], strict=True):
            if len(values) != len(ids):
                raise ValueError(f"{name}: {len(values)} values for {len(ids)} entity ids")
        check_times(times)
        return self._encoded(ids, times, arrays)

    def fits(self, batch: pa.RecordBatch) -> bool:
        """Return whether the batch's columns have types that `write` takes; values are not looked at."""
        try:
            _entity_ids(self._join_key, batch[self._join_key].slice(0, 0))
            for name, kind in self._fields:
                arrow_column(name, kind, batch[name].slice(0, 0))
        except TypeError:
            return False
        return True

    def _encoded(self, ids: pa.Array, times: Integers, arrays: list[pa.Array]) -> Iterator[Encoded]:
        numbers_width = 64 + sum(32 for _ in arrays)
        pending = [(at, min(at + ROWS_A_CHUNK, len(ids))) for at in range(0, len(ids), ROWS_A_CHUNK)][::-1]
        while pending:
            first, end = pending.pop()
            cut = [array.slice(first, end - first) for array in arrays]
            key = ids.slice(first, end - first)
            width = numbers_width + sum(map(longest_text, [key, *cut]))
            if width * (end - first) > CHUNK_BYTES and end - first > 1:
                middle = (first + end) // 2
                pending += [(middle, end), (first, middle)]
                continue
            rows = end - first
            key_parts = bulk(entity_keys(self._join_key, key, self._project), rows)
            value_parts = bulk(timestamps(times[first:end]), rows)
            for (_, kind), array in zip(self._fields, cut, strict=True):
                value_parts += bulk(VALUE_TYPES[kind].encode(array), rows)
            yield Encoded(*join_rows(key_parts, rows), *join_rows(value_parts, rows))


def _entity_ids(join_key: str, values: Column) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    ids = values if isinstance(values, pa.Array) else pa.array(values)
    entity_keys(join_key, ids.slice(0, 0), "")
    if ids.null_count:
        raise ValueError(f"{join_key}: an entity id is null")
    return ids
