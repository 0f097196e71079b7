"""Feast's Redis online store with writes of its own: the same bytes, whole rows, never over a newer one.

`online_store.type: fast_redis_online_store.FastRedisOnlineStore` in feature_store.yaml. Reads, deletions and
the connection are Feast's. Every write of the SDK comes here: pushes, `write_to_online_store`, `feast
materialize`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, Final, Literal

import numpy as np
from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from fast_redis_layout import bulk, field_name, join_rows, time_field, timestamps
from fast_redis_writer import (
    ROWS_A_CHUNK,
    Encoded,
    RedisRowWriter,
    ScriptCaller,
    Ties,
    bulk_strings,
    encode_items,
)

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
Progress = Callable[[int], Any] | None

TYPE: Final = "fast_redis_online_store.FastRedisOnlineStore"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What the vectorised writer can write, by Feast's types.
KINDS = {
    ValueType.INT32: "int32",
    ValueType.INT64: "int64",
    ValueType.FLOAT: "float32",
    ValueType.DOUBLE: "float64",
    ValueType.BOOL: "bool",
    ValueType.STRING: "string",
    ValueType.BYTES: "bytes",
    ValueType.UNIX_TIMESTAMP: "unix_timestamp",
}
KEY_TYPES = (ValueType.INT32, ValueType.INT64, ValueType.STRING, ValueType.BYTES)


class FastRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """The settings of Feast's Redis store, without `skip_dedup`: it lets old rows replace newer ones."""

    type: Literal["fast_redis_online_store.FastRedisOnlineStore"] = TYPE  # type: ignore[assignment]
    skip_dedup: Literal[False] = False


class FastRedisOnlineStore(RedisOnlineStore):
    """Feast's Redis online store; a row is written whole, and only over an older one or one of the same time.

    Where a stream feeds a view, a materialization writes only over older rows: of two rows of one time, the
    stream's is the one that knew more.
    """

    _forced_ties: Ties | None = None

    @contextmanager
    def forcing(self, ties: Ties) -> Iterator[None]:
        """Settle ties so in every `online_write_batch` within the block."""
        self._forced_ties = ties
        try:
            yield
        finally:
            self._forced_ties = None

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[Row], progress: Progress
    ) -> None:
        """Write rows as `write_rows`, with ties settled as the architecture says."""
        # Feast passes a progress callback where it materializes, and none where rows are pushed.
        streamed = getattr(table, "stream_source", None) is not None
        ties: Ties = "newer" if streamed and progress is not None else "same_or_newer"
        self.write_rows(config, table, data, self._forced_ties or ties)
        if progress:
            progress(len(data))

    def write_rows(self, config: RepoConfig, table: FeatureView, data: list[Row], ties: Ties) -> int:
        """Write rows of Feast's messages, any number of join keys, any type; return how many were written."""
        written = 0
        view = view_name(config, table)
        for names, rows in groupby(data, key=lambda row: tuple(row[1])):
            caller = ScriptCaller(
                self._get_client(config.online_store),
                [time_field(view), *(field_name(view, name) for name in names)],
                ties,
                config.online_store.key_ttl_seconds,
            )
            written += caller.write(encoded_rows(config, list(rows), names))
        return written

    async def online_write_batch_async(
        self, config: RepoConfig, table: FeatureView, data: list[Row], progress: Progress
    ) -> None:
        """Write as `online_write_batch`, in a thread."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def row_writer(self, config: RepoConfig, table: FeatureView) -> RedisRowWriter | None:
        """Return the vectorised writer of a view, None where only `online_write_batch` can write it."""
        kinds = {field.name: KINDS.get(field.dtype.to_value_type()) for field in table.features}
        keys = table.entity_columns
        if len(keys) != 1 or keys[0].dtype.to_value_type() not in KEY_TYPES:
            return None
        fields = [(name, kind) for name, kind in kinds.items() if kind is not None]
        if len(fields) < len(kinds):
            return None
        return RedisRowWriter(
            self._get_client(config.online_store),
            config.project,
            view_name(config, table),
            keys[0].name,
            fields,
            config.online_store.key_ttl_seconds,
        )


def view_name(config: RepoConfig, table: FeatureView) -> str:
    """Return the view's name in the online store, with its version where Feast keeps several."""
    return compute_versioned_name(table, config.registry.enable_online_feature_view_versioning)


def encoded_rows(config: RepoConfig, rows: Sequence[Row], names: tuple[str, ...]) -> Iterator[Encoded]:
    """Yield rows that have the same fields, in chunks."""
    version, project = config.entity_key_serialization_version, config.project.encode()
    for first in range(0, len(rows), ROWS_A_CHUNK):
        chunk = rows[first : first + ROWS_A_CHUNK]
        times = np.array([microseconds(time) for _, _, time, _ in chunk], dtype=np.int64)
        stamps = bulk_strings(join_rows(bulk(timestamps(times), len(chunk)), len(chunk))[0])
        yield encode_items(
            [serialize_entity_key(key, version) + project for key, _, _, _ in chunk],
            [
                [stamp, *(values[name].SerializeToString() for name in names)]
                for stamp, (_, values, _, _) in zip(stamps, chunk, strict=True)
            ],
        )


def microseconds(time: datetime) -> int:
    """Return microseconds since 1970; a time without an offset is UTC, as everywhere in Feast."""
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return (aware - EPOCH) // timedelta(microseconds=1)
