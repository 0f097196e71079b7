"""The Feast SDK as a peer of tests and benchmarks; runs in the feature store's environment.

Reads JSON lines on standard input and answers each with one. The first is `contract`, `project` and
`connection_string`; then `{"write": rows}` (`view`, `entity`, `values`, `event_timestamp`) through the online
store class that Feast ships, answered by the raw key and hash of each row in hex; `{"read": entities}` (lists
by join key) through `get_online_features`, answered by columns; `{"time": [entities, ...]}`, answered by the
seconds that `get_online_features` took for each of them.
"""

import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.online_stores.helpers import _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String

TYPES = {"int64": Int64, "float64": Float64, "string": String}
KEY_TYPES = {"int64": ValueType.INT64, "string": ValueType.STRING}
MEMBERS = {"int64": "int64_val", "float64": "double_val", "string": "string_val"}


def value_of(kind, value):
    return Value() if value is None else Value(**{MEMBERS[kind]: value})


class Peer:
    def __init__(self, folder, start):
        self.contract, self.project = start["contract"], start["project"]
        self.config = RepoConfig(
            project=self.project,
            provider="local",
            registry=str(Path(folder) / "registry.db"),
            online_store={"type": "redis", "connection_string": start["connection_string"]},
            entity_key_serialization_version=3,
        )
        self.store = FeatureStore(config=self.config)
        self.entities = {entity["name"]: entity for entity in self.contract["entities"]}
        feast_entities = {
            name: Entity(name=name, join_keys=[e["join_key"]], value_type=KEY_TYPES[e["type"]])
            for name, e in self.entities.items()
        }
        # Two contracts of one root give one view the same name, and a view all its fields.
        self.views = {
            view["name"]: FeatureView(
                name=view["name"],
                entities=[feast_entities[view["entity"]]],
                ttl=timedelta(seconds=view["ttl_seconds"]),
                schema=[Field(name=f["name"], dtype=TYPES[f["type"]]) for f in view["fields"]],
                source=FileSource(
                    path=str(Path(folder) / "unused.parquet"), timestamp_field="event_timestamp"
                ),
            )
            for view in self.contract["views"]
        }
        self.service = FeatureService(name="all_views", features=list(self.views.values()))
        self.store.apply([*feast_entities.values(), *self.views.values(), self.service])

    def write(self, rows):
        online = self.store._get_provider().online_store
        fields = {view["name"]: view for view in self.contract["views"]}
        answers = []
        for row in rows:
            view = fields[row["view"]]
            entity = self.entities[view["entity"]]
            key = EntityKey(
                join_keys=[entity["join_key"]], entity_values=[value_of(entity["type"], row["entity"])]
            )
            types = {field["name"]: field["type"] for field in view["fields"]}
            values = {name: value_of(types[name], value) for name, value in row["values"].items()}
            at = datetime.fromtimestamp(row["event_timestamp"], UTC)
            online.online_write_batch(self.config, self.views[view["name"]], [(key, values, at, None)], None)
            raw_key = _redis_key(self.project, key, 3)
            raw = online._get_client(self.config.online_store).hgetall(raw_key)
            answers.append({"key": raw_key.hex(), "hash": {k.hex(): v.hex() for k, v in raw.items()}})
        return answers

    def read(self, entities):
        return self.store.get_online_features(
            features=self.service, entity_rows=self.rows(entities)
        ).to_dict()

    def time(self, cases):
        taken = []
        for rows in [self.rows(entities) for entities in cases]:
            began = time.perf_counter()
            self.store.get_online_features(features=self.service, entity_rows=rows)
            taken.append(time.perf_counter() - began)
        return taken

    def rows(self, entities):
        return [dict(zip(entities, row, strict=True)) for row in zip(*entities.values(), strict=True)]


def main():
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever Feast prints is no answer
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(folder, json.loads(sys.stdin.readline()))
        for line in sys.stdin:
            request = json.loads(line)
            if "write" in request:
                answer = peer.write(request["write"])
            elif "read" in request:
                answer = peer.read(request["read"])
            else:
                answer = peer.time(request["time"])
            print(json.dumps(answer), file=answers, flush=True)


main()
