"""Writes a contract's views into Redis through the Feast SDK; runs in the feature store's environment.

Reads a request on standard input: contract, project, connection string, and rows of `view`, `entity`,
`values`, `event_timestamp`. Prints what the SDK reads back: per row the values, the raw key and hash in hex.
"""

import json
import sys
from datetime import UTC, datetime, timedelta

from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.online_stores.helpers import _redis_key
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String

TYPES = {"int64": Int64, "float64": Float64, "string": String}
MEMBERS = {"int64": "int64_val", "float64": "double_val", "string": "string_val"}


def value_of(kind, value):
    return Value() if value is None else Value(**{MEMBERS[kind]: value})


def main():
    request = json.load(sys.stdin)
    contract = request["contract"]
    config = RepoConfig(
        project=request["project"],
        provider="local",
        registry="unused.db",
        online_store={"type": "redis", "connection_string": request["connection_string"]},
        entity_key_serialization_version=3,
    )
    store = RedisOnlineStore()
    join_keys = {entity["name"]: entity["join_key"] for entity in contract["entities"]}
    views = {view["name"]: view for view in contract["views"]}
    answers = []
    for row in request["rows"]:
        view = views[row["view"]]
        join_key = join_keys[view["entity"]]
        table = FeatureView(
            name=view["name"],
            entities=[Entity(name=view["entity"], join_keys=[join_key], value_type=ValueType.INT64)],
            ttl=timedelta(seconds=view["ttl_seconds"]),
            schema=[Field(name=f["name"], dtype=TYPES[f["type"]]) for f in view["fields"]],
            source=FileSource(path="unused.parquet", timestamp_field="event_timestamp"),
        )
        key = EntityKey(join_keys=[join_key], entity_values=[Value(int64_val=row["entity"])])
        types = {field["name"]: field["type"] for field in view["fields"]}
        values = {name: value_of(types[name], value) for name, value in row["values"].items()}
        time = datetime.fromtimestamp(row["event_timestamp"], UTC)
        store.online_write_batch(config, table, [(key, values, time, None)], None)
        _, read = store.online_read(config, table, [key], list(types))[0]
        back = {}
        for name, value in read.items():
            member = value.WhichOneof("val")
            back[name] = None if member is None else getattr(value, member)
        raw_key = _redis_key(request["project"], key, 3)
        raw = store._get_client(config.online_store).hgetall(raw_key)
        answers.append(
            {"values": back, "key": raw_key.hex(), "hash": {k.hex(): v.hex() for k, v in raw.items()}}
        )
    json.dump(answers, sys.stdout)


main()
