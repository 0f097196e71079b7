"""Features by the Feast SDK and pandas, as its documentation shows it: what most teams would write first."""

import json
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float64, Int64

TYPES = {"int64": Int64, "float64": Float64}


def open_store(contract):
    folder = tempfile.mkdtemp(prefix="feast-peer-")
    store = FeatureStore(
        config=RepoConfig(
            project=os.environ["FEAST_PROJECT"],
            provider="local",
            registry=str(Path(folder) / "registry.db"),
            online_store={"type": "redis", "connection_string": os.environ["REDIS_CONNECTION"]},
            entity_key_serialization_version=3,
        )
    )
    entities = {
        e["name"]: Entity(name=e["name"], join_keys=[e["join_key"]], value_type=ValueType.INT64)
        for e in contract["entities"]
    }
    views = [
        FeatureView(
            name=view["name"],
            entities=[entities[view["entity"]]],
            ttl=timedelta(seconds=view["ttl_seconds"]),
            schema=[Field(name=f["name"], dtype=TYPES[f["type"]]) for f in view["fields"]],
            source=FileSource(path=str(Path(folder) / "none.parquet"), timestamp_field="event_timestamp"),
        )
        for view in contract["views"]
    ]
    service = FeatureService(name="all_views", features=views)
    store.apply([*entities.values(), *views, service])
    return store, service


class Features:
    def __init__(self):
        self.contract = json.loads(Path(os.environ["CONTRACT_FILE"]).read_text())
        self.names = [feature["name"] for feature in self.contract["features"]]
        self.store, self.service = open_store(self.contract)

    def frame(self, customer_id, terminal_id, tx_amount, at=None):
        """Return one row with the model's features."""
        at = at or datetime.now(UTC)
        frame = self.store.get_online_features(
            features=self.service, entity_rows=[{"customer_id": customer_id, "terminal_id": terminal_id}]
        ).to_df()
        today = at.timestamp() // 86400
        frame["tx_amount"] = tx_amount
        frame["tx_is_weekend"] = float(at.weekday() >= 5)
        frame["tx_is_night"] = float(at.hour <= 6)
        for entity in ("customer", "terminal"):
            same_day = frame[f"{entity}_today_day"] == today
            count = frame[f"{entity}_tx_count_today"].where(same_day, 0).fillna(0)
            for days in (1, 7, 30):
                frame[f"{entity}_tx_count_{days}d"] = (
                    frame[f"{entity}_tx_count_full_{days}d"].fillna(0) + count + 1
                )
        amount = (
            frame["customer_tx_amount_sum_today"].where(frame["customer_today_day"] == today, 0).fillna(0)
        )
        for days in (1, 7, 30):
            total = frame[f"customer_tx_amount_sum_full_{days}d"].fillna(0) + amount + tx_amount
            frame[f"customer_tx_amount_mean_{days}d"] = total / frame[f"customer_tx_count_{days}d"]
        return frame.reindex(columns=self.names).astype("float64").fillna(0.0)


def record(stream, body, frame, score, decision):
    """Append the decision to a file and hand it to the operating system."""
    row = {"request": body, "features": frame.iloc[0].to_dict(), "score": score, "decision": decision}
    stream.write(json.dumps(row) + "\n")
    stream.flush()


def decide(score, thresholds, tx_amount):
    if score >= thresholds["decline"]:
        return "decline"
    return "review" if score >= thresholds["review"] or tx_amount > 220 else "approve"
