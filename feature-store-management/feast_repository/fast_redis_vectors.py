"""Write contracts/online_store_vectors.json: what Feast itself puts into Redis, and what it reads back.

Run it after an upgrade of Feast (`python feast_repository/fast_redis_vectors.py`); the tests fail until the
file is what Feast gives. Nothing here computes a byte: Feast's own Redis store writes, into a dictionary.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import feast
import numpy as np
import pyarrow as pa
from feast import Entity, FeatureView, Field, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.types import Bool, Bytes, FeastType, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.utils import _convert_arrow_to_proto
from feast.value_type import ValueType

PATH = Path(__file__).parents[1] / "contracts" / "online_store_vectors.json"
FORMAT_VERSION = 1
DESCRIPTION = (
    "Bytes of the online store in hexadecimal, as Feast's own Redis store writes them (entity key "
    "serialization 3). `values`: `input` is what a data frame holds, `read` what Feast reads back. "
    "`rows`: one hash each, with what Feast reads of its views; a view whose `event_timestamp` is null "
    "is missing. Null is null; NaN, Infinity and -Infinity are texts, bytes are hexadecimal, times are "
    "RFC 3339 with microseconds. NaN in a data frame is written as null; a null time as the smallest "
    "integer of 64 bits."
)

TYPES: dict[str, tuple[FeastType, pa.DataType]] = {
    "int32": (Int32, pa.int32()),
    "int64": (Int64, pa.int64()),
    "float32": (Float32, pa.float32()),
    "float64": (Float64, pa.float64()),
    "bool": (Bool, pa.bool_()),
    "string": (String, pa.string()),
    "bytes": (Bytes, pa.binary()),
    "unix_timestamp": (UnixTimestamp, pa.timestamp("us", "UTC")),
}
ENTITY_TYPES = {"int32": ValueType.INT32, "int64": ValueType.INT64, "string": ValueType.STRING,
                "bytes": ValueType.BYTES}  # fmt: skip

VALUES: list[tuple[str, list[Any]]] = [
    ("int32", [0, 1, -1, 127, 128, 2**31 - 1, -(2**31), None]),
    ("int64", [0, 1, -1, 127, 128, 300, 16_383, 16_384, -5, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), None]),
    ("float32", [0.0, -0.0, 1.5, -2.25, math.inf, None]),
    ("float64", [0.0, -0.0, 0.1, -1.5, 123.45, 1e308, 5e-324, math.inf, -math.inf, math.nan, None]),
    ("bool", [True, False, None]),
    (
        "string",
        ["", "Two year", "Zürich", "日本", "😀", "a\x00b", "\r\n", "x" * 127, "x" * 128, None],
    ),
    ("bytes", [b"\x00", b"\xff\xfe", b"$3\r\nabc\r\n", None]),
    (
        "unix_timestamp",
        [
            datetime(1970, 1, 1, tzinfo=UTC),
            datetime(2026, 11, 21, 6, 30, 0, 999_999, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
            None,
        ],
    ),
]
KEYS: list[tuple[str, dict[str, tuple[str, Any]]]] = [
    ("mlops_platform", {"customer_id": ("int64", 0)}),
    ("mlops_platform", {"customer_id": ("int64", 4_711)}),
    ("mlops_platform", {"customer_id": ("int64", -1)}),
    ("mlops_platform", {"customer_id": ("int64", 2**63 - 1)}),
    ("mlops_platform", {"customer_id": ("int64", -(2**63))}),
    ("mlops_platform", {"terminal_id": ("int32", -7)}),
    ("mlops_platform", {"Kundennummer_ü": ("int64", 5)}),
    ("projekt_ß", {"viewer_id": ("string", "Zoë 日本")}),
    ("mlops_platform", {"viewer_id": ("string", "")}),
    ("mlops_platform", {"card": ("bytes", b"\x00\xff")}),
    ("mlops_platform", {"terminal_id": ("int64", 9), "customer_id": ("int64", 3)}),
    ("mlops_platform", {"b": ("string", "x"), "a": ("int64", 1)}),
]
TIMES = [
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
    datetime(2026, 11, 21, tzinfo=UTC),
    datetime(2026, 11, 21, 6, 30, 15, 123_456, tzinfo=UTC),
    datetime(2026, 11, 21, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
]
NAMES = [
    ("customer_daily", "customer_tx_count_full_1d"),
    ("customer_today", "customer_tx_amount_sum_today"),
    ("Ansicht_ü", "größe"),
]

PROFILE: dict[str, tuple[str, Any]] = {
    "count": ("int64", 3),
    "mean": ("float64", 41.25),
    "town": ("string", "Zürich"),
}
NOTHING: dict[str, tuple[str, Any]] = {name: (kind, None) for name, (kind, _) in PROFILE.items()}
TODAY: dict[str, tuple[str, Any]] = {"since_midnight": ("int64", 2), "seen": ("bool", True)}
AT = datetime(2026, 11, 21, 6, 30, 15, 123_456, tzinfo=UTC)
LATER = datetime(2026, 11, 21, 7, tzinfo=UTC)
# Name of the case, entity id, and per view its time and written values, which may be fewer than are read.
Written = dict[str, tuple[datetime, dict[str, tuple[str, Any]]]]
ROWS: list[tuple[str, int, Written]] = [
    ("two views in one hash", 1, {"profile": (AT, PROFILE), "today": (LATER, TODAY)}),
    ("one view of two is missing", 2, {"profile": (AT, PROFILE)}),
    ("nothing is there", 3, {}),
    (
        "every value is null",
        -4,
        {"profile": (AT, {name: (kind, None) for name, (kind, _) in PROFILE.items()})},
    ),
    ("one value is null", 5, {"profile": (AT, {**PROFILE, "mean": ("float64", None)})}),
    ("a field is younger than the row", 6, {"profile": (AT, {"count": ("int64", 3)})}),
    ("the time is the epoch", 2**63 - 1, {"profile": (TIMES[0], PROFILE)}),
    ("the time is before the epoch", -(2**63), {"profile": (TIMES[6], PROFILE)}),
]
READ = {"profile": PROFILE, "today": TODAY}


class Recorder:
    """Redis, as far as Feast's store writes to it and reads from it here."""

    def __init__(self) -> None:
        self.hashes: dict[bytes, dict[bytes, bytes]] = {}
        self._replies: list[Any] = []

    def pipeline(self, transaction: bool) -> Recorder:
        """Return a pipeline; commands are executed at once."""
        self._replies = []
        return self

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def hset(self, key: bytes, mapping: Mapping[str | bytes, bytes]) -> None:
        """Set fields of a hash."""
        row = self.hashes.setdefault(key, {})
        row.update({_raw(name): value for name, value in mapping.items()})
        self._replies.append(len(mapping))

    def hmget(self, key: bytes, *names: Any) -> None:
        """Get fields of a hash."""
        wanted = names[0] if isinstance(names[0], list) else list(names)
        row = self.hashes.get(key, {})
        self._replies.append([row.get(_raw(name)) for name in wanted])

    def execute(self) -> list[Any]:
        """Return the replies since the last call."""
        replies, self._replies = self._replies, []
        return replies


def _raw(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else name


class FeastStore:
    """Feast's own Redis store over a `Recorder`."""

    def __init__(self, project: str) -> None:
        self.redis = Recorder()
        self._store = RedisOnlineStore()
        self._store._client = cast(Any, self.redis)
        self._config = cast(
            RepoConfig,
            SimpleNamespace(
                project=project,
                entity_key_serialization_version=3,
                online_store=RedisOnlineStoreConfig(),
                registry=SimpleNamespace(enable_online_feature_view_versioning=False),
            ),
        )

    def write(
        self,
        view: str,
        keys: Mapping[str, tuple[str, Any]],
        features: Mapping[str, tuple[str, Any]],
        time: datetime,
    ) -> None:
        """Write one row as `feast materialize` and pushes do: from a frame, through Arrow."""
        columns = {
            name: pa.array([value], TYPES[kind][1]) for name, (kind, value) in {**keys, **features}.items()
        }
        batch = pa.record_batch({**columns, "event_timestamp": pa.array([time], pa.timestamp("us", "UTC"))})
        kinds = {name: ENTITY_TYPES[kind] for name, (kind, _) in keys.items()}
        self.write_batch(feature_view(view, keys, features), kinds, batch)

    def write_batch(self, view: FeatureView, keys: dict[str, ValueType], batch: pa.RecordBatch) -> None:
        """Write rows of keys, features and `event_timestamp`."""
        self._store.online_write_batch(self._config, view, _convert_arrow_to_proto(batch, view, keys), None)

    def read(
        self, view: str, keys: Mapping[str, tuple[str, Any]], features: Mapping[str, tuple[str, Any]]
    ) -> dict[str, Any]:
        """Return the values of a row as the SDK gives them."""
        entity = entity_key(keys)
        [(_, values)] = self._store.online_read(
            self._config, feature_view(view, keys, features), [entity], list(features)
        )
        return {name: feast_value_type_to_python_type(value) for name, value in (values or {}).items()}


def entity_key(keys: Mapping[str, tuple[str, Any]]) -> EntityKey:
    """Return Feast's message of an entity."""
    values = [Value(**{f"{kind}_val": value}) for kind, value in keys.values()]
    return EntityKey(join_keys=list(keys), entity_values=values)


def feature_view(
    name: str, keys: Mapping[str, tuple[str, Any]], features: Mapping[str, tuple[str, Any]]
) -> FeatureView:
    """Return Feast's definition of a view with one entity a join key."""
    return FeatureView(
        name=name,
        entities=[
            Entity(name=key, join_keys=[key], value_type=ENTITY_TYPES[kind])
            for key, (kind, _) in keys.items()
        ],
        schema=[
            Field(name=column, dtype=TYPES[kind][0]) for column, (kind, _) in {**keys, **features}.items()
        ],
        source=PostgreSQLSource(name=name, table=name, timestamp_field="event_timestamp"),
    )


def plain(value: Any) -> Any:
    """Return a value as JSON holds it."""
    if isinstance(value, datetime):
        # Not isoformat's and strftime's ways with years before 1000.
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def key_vectors() -> list[dict[str, Any]]:
    """Return the keys of entities."""
    found = []
    for project, keys in KEYS:
        store = FeastStore(project)
        store.write("view", keys, {"x": ("int64", 1)}, AT)
        [key] = store.redis.hashes
        joins = [{"name": name, "type": kind, "value": plain(value)} for name, (kind, value) in keys.items()]
        found.append({"project": project, "join_keys": joins, "key": key.hex()})
    return found


def field_vectors() -> list[dict[str, str]]:
    """Return the names of hash fields."""
    found = []
    for view, feature in NAMES:
        store = FeastStore("p")
        store.write(view, {"id": ("int64", 1)}, {feature: ("int64", 1)}, AT)
        [row] = store.redis.hashes.values()
        time, name = row
        found.append({"view": view, "feature": feature, "field": name.hex(), "time_field": time.hex()})
    return found


def time_vectors() -> list[dict[str, Any]]:
    """Return the times of rows, in order."""
    found = []
    for time in sorted(TIMES):
        store = FeastStore("p")
        store.write("view", {"id": ("int64", 1)}, {"x": ("int64", 1)}, time)
        [row] = store.redis.hashes.values()
        found.append({"event_timestamp": plain(time), "hex": row[b"_ts:view"].hex()})
    return found


def value_vectors() -> list[dict[str, Any]]:
    """Return values of each type."""
    found = []
    for kind, values in VALUES:
        for value in values:
            store, keys, features = FeastStore("p"), {"id": ("int64", 1)}, {"x": (kind, value)}
            store.write("view", keys, features, AT)
            [row] = store.redis.hashes.values()
            [raw] = [raw for name, raw in row.items() if name != b"_ts:view"]
            read = store.read("view", keys, features)["x"]
            found.append({"type": kind, "input": plain(value), "hex": raw.hex(), "read": plain(read)})
    return found


def row_vectors() -> list[dict[str, Any]]:
    """Return whole hashes and what is read of them."""
    found = []
    for name, entity_id, written in ROWS:
        store, keys = FeastStore("mlops_platform"), {"customer_id": ("int64", entity_id)}
        for view, (time, features) in written.items():
            store.write(view, keys, features, time)
        hashes = store.redis.hashes
        views = {
            view: {
                "event_timestamp": plain(written[view][0]) if view in written else None,
                "types": {feature: kind for feature, (kind, _) in features.items()},
                "read": {f: plain(value) for f, value in store.read(view, keys, features).items()},
            }
            for view, features in READ.items()
        }
        found.append(
            {
                "name": name,
                "project": "mlops_platform",
                "join_keys": [{"name": "customer_id", "type": "int64", "value": entity_id}],
                "key": serialize_entity_key(entity_key(keys), 3).hex() + b"mlops_platform".hex(),
                "hash": {field.hex(): raw.hex() for row in hashes.values() for field, raw in row.items()},
                "views": views,
            }
        )
    return found


def vectors() -> dict[str, Any]:
    """Return the whole file."""
    return {
        "format_version": FORMAT_VERSION,
        "description": DESCRIPTION,
        "feast_version": feast.__version__,
        "entity_key_serialization_version": 3,
        "keys": key_vectors(),
        "fields": field_vectors(),
        "event_timestamps": time_vectors(),
        "values": value_vectors(),
        "rows": row_vectors(),
    }


def as_text(document: Mapping[str, Any]) -> str:
    """Return JSON with one line a vector."""
    blocks = []
    for name, content in document.items():
        if isinstance(content, Sequence) and not isinstance(content, str):
            lines = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in content)
            blocks.append(f"  {json.dumps(name)}: [\n{lines}\n  ]")
        else:
            blocks.append(f"  {json.dumps(name)}: {json.dumps(content, ensure_ascii=False)}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(as_text(vectors()), encoding="utf-8")
    sys.stdout.write(f"{PATH}\n")
