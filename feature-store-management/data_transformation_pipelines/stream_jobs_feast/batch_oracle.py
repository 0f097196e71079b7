"""What the online store must hold after a set of events, computed apart: whole columns, no order of arrival.

An entity's online row is that of its newest day: all of the day's events, each once. So neither duplicates,
nor the order, nor a crash may show in it. It shares nothing with the processor but the names of the fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import redis
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

FIELDS = {
    "customer": ("customer_tx_count_today", "customer_tx_amount_sum_today", "customer_today_day"),
    "terminal": ("terminal_tx_count_today", "terminal_today_day"),
}
READ_AT_ONCE = 5_000


def daily_totals(events: pd.DataFrame, entity: str) -> pd.DataFrame:
    """Return per entity and day the totals of all its events, and the time of the row that holds them all.

    `events` has the columns of a transaction, `tx_datetime` in UTC, in any order and with duplicates.
    """
    key = f"{entity}_id"
    unique = events.drop_duplicates("transaction_id")
    day = (unique["tx_datetime"].dt.floor("D") - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(days=1)
    cents = (unique["tx_amount"] * 100).round().astype("int64")
    grouped = unique.assign(cents=cents).groupby([unique[key], day.rename(f"{entity}_today_day")])
    totals = pd.DataFrame({f"{entity}_tx_count_today": grouped.size()})
    if entity == "customer":
        totals["customer_tx_amount_sum_today"] = grouped["cents"].sum() / 100
    totals["event_timestamp"] = grouped["tx_datetime"].max() + pd.Timedelta(microseconds=1)
    return totals.reset_index()


def newest_day_totals(events: pd.DataFrame, entity: str) -> pd.DataFrame:
    """Return per entity, by `<entity>_id`, the totals of its newest day."""
    totals = daily_totals(events, entity)
    return totals.sort_values(f"{entity}_today_day").groupby(f"{entity}_id").last()


def expected_hashes(totals: pd.DataFrame, entity: str, project: str) -> dict[bytes, dict[bytes, bytes]]:
    """Return, by Redis key, the fields and bytes that Feast itself would write for these totals."""
    view, names = f"{entity}_today", FIELDS[entity]
    fields = [_mmh3(f"{view}:{name}") for name in names]
    hashes = {}
    for row in totals.itertuples():
        key = EntityKey(join_keys=[f"{entity}_id"], entity_values=[Value(int64_val=int(row.Index))])
        moment = Timestamp()
        moment.FromNanoseconds(row.event_timestamp.value)
        values = [
            Value(double_val=float(getattr(row, name)))
            if "sum" in name
            else Value(int64_val=int(getattr(row, name)))
            for name in names
        ]
        hashes[serialize_entity_key(key, entity_key_serialization_version=3) + project.encode()] = {
            f"_ts:{view}".encode(): moment.SerializeToString(),
            **{field: value.SerializeToString() for field, value in zip(fields, values, strict=True)},
        }
    return hashes


def compare(client: redis.Redis, events: pd.DataFrame, project: str) -> dict[str, Any]:
    """Compare every key of a project in Redis with the oracle, byte for byte; return counts and examples.

    `mismatches` counts hashes that differ, are missing, or should not be there.
    """
    expected: dict[bytes, dict[bytes, bytes]] = {}
    for entity in FIELDS:
        expected |= expected_hashes(newest_day_totals(events, entity), entity, project)
    found = {key for key in client.scan_iter(count=10_000) if key.endswith(project.encode())}
    surplus, keys = found - expected.keys(), list(expected)
    wrong = [key.hex() for key in sorted(surplus)]
    for start in range(0, len(keys), READ_AT_ONCE):
        some = keys[start : start + READ_AT_ONCE]
        wrong += [
            key.hex() for key, held in zip(some, _read(client, some), strict=True) if held != expected[key]
        ]
    return {
        "entities": len(expected),
        "values": sum(len(fields) for fields in expected.values()),
        "mismatches": len(wrong),
        "examples": wrong[:5],
    }


def _read(client: redis.Redis, keys: Sequence[bytes]) -> list[dict[bytes, bytes]]:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hgetall(key)  # type: ignore[arg-type]
        return pipe.execute()
