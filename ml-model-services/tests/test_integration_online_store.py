"""The readers against what the Feast SDK itself wrote into a real Redis server, and reads from it."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
from service_testkit import NOON, contract_document
from stack_testkit import FeastPeer, empty_online_store, setting, unique

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feature_contract import parse_contract
from common_service_libs.feature_status import STATUSES
from common_service_libs.online_feature_reader import OnlineFeatureReader
from common_service_libs.online_store import FeatureReader
from common_service_libs.redis_link import RedisLink
from common_service_libs.redis_socket import RedisSocket

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
ENTITIES = 40
TEXT_KEYS = ["", "24", "phở", "Zoë 日本", "a\r\nb", "😀", "x" * 300]


def _random_value(kind: str, rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return None
    if kind == "int64":
        return rng.choice([0, 1, -1, 127, 128, 2**31, -(2**40), rng.randrange(10**6)])
    if kind == "float64":
        return rng.choice([0.0, -0.0, 0.1, 1e-300, 1e300, math.inf, rng.uniform(-1e6, 1e6)])
    return rng.choice(["", "No", "Month-to-month", "Électronique – 月", "x" * 300])


def _document(name: str) -> dict[str, Any]:
    """Return a published contract, or one whose entity has text keys, served stale."""
    if name != "text_keys_v1":
        return contract_document(name)
    document = copy.deepcopy(contract_document("customer_churn_v1")) | {"name": name}
    document["entities"][0]["type"] = "string"
    document["views"][0]["ttl_seconds"] = 1800
    for feature in document["features"]:
        feature["on_stale"] = "use_stale"
    return document


def _store() -> RedisSocket:
    return RedisSocket(setting("REDIS_HOST"), int(setting("REDIS_PORT")), setting("REDIS_PASSWORD"))


@pytest.mark.parametrize("name", ["fraud_detection_v1", "customer_churn_v1", "text_keys_v1"])
async def test_every_value_that_the_sdk_reads_is_read_here_alone_and_among_many(name: str) -> None:
    """Nulls, missing and expired rows, text keys: values equal the SDK's, which knows no time to live."""
    document, project = _document(name), unique("parity").replace("-", "_")
    parsed, rng = parse_contract(document), random.Random(name)
    text = document["entities"][0]["type"] == "string"
    keys: list[Any] = (
        [*TEXT_KEYS, *(f"n{number}" for number in range(ENTITIES))] if text else list(range(-3, ENTITIES))
    )
    rows = [
        {
            "view": view.name,
            "entity": key,
            "values": {field.name: _random_value(field.type, rng) for field in view.fields},
            "event_timestamp": round(NOON - rng.uniform(0, 3600), 6),
        }
        for view in parsed.views
        for key in keys
        if rng.random() < 0.9
    ]
    times = {(row["view"], row["entity"]): row["event_timestamp"] for row in rows}
    ids = {entity.join_key: keys for entity in parsed.entities}
    link = RedisLink(
        setting("REDIS_HOST"), int(setting("REDIS_PORT")), setting("REDIS_PASSWORD"),
        deadline=2, connect_deadline=2,
    )  # fmt: skip
    await link.open()
    seen: set[str] = set()
    try:
        with FeastPeer(document, project) as peer:
            peer.write(rows)
            sdk = peer.read(ids)
        reader = FeatureReader(parsed, project)
        columns = await reader.read_many(link, ids, NOON)
        for at, key in enumerate(keys):
            alone = await reader.read(link, dict.fromkeys(ids, key), NOON)
            for view in parsed.views:
                expected = {field.name: sdk[field.name][at] for field in view.fields}
                time = times.get((view.name, key))
                status = "null" if None in expected.values() else "present"
                if time is None:
                    status = "missing"
                elif NOON - time > view.ttl_seconds:
                    status = "stale"
                seen.add(status)
                assert alone.status[view.name] == STATUSES[columns.views[view.name].status[at]] == status
                assert alone.event_timestamps[view.name] == time
                single = alone.stale_values if status == "stale" else alone.values
                many = columns.stale_values if status == "stale" else columns.values
                for field, value in expected.items():
                    assert repr(single.get(field)) == repr(
                        value if isinstance(value, str | None) else float(value)
                    )
                    cell = many[field][at]
                    assert cell == value or (value is None and (cell is None or math.isnan(cell)))
    finally:
        await link.close()
        empty_online_store(project)
    assert {"present", "null", "missing"} | ({"stale"} if text else set()) == seen


def test_the_blocking_door_serves_the_same_vectors_and_says_when_the_store_is_silent() -> None:
    document, project = _document("text_keys_v1"), unique("blocking").replace("-", "_")
    parsed = parse_contract(document)
    fields = document["views"][0]["fields"]
    values = {f["name"]: {"int64": 3, "float64": 1.5, "string": "Hà Nội"}[f["type"]] for f in fields}
    rows = [
        {"view": "subscriber_profile", "entity": key, "values": values, "event_timestamp": NOON - age}
        for key, age in (("fresh", 10), ("old", 3600))
    ]
    keys = ["old", "fresh", "nobody"] * 500  # more than one round trip
    try:
        with FeastPeer(document, project) as peer:
            peer.write(rows)
        with OnlineFeatureReader(parsed, project, _store()) as reader:
            table = reader.read_many({"subscriber_id": keys}, NOON)
            assert table.rows == 1500
            assert table.status_names("subscriber_contract") == ["stale", "present", "missing"] * 500
            assert list(table.columns["subscriber_contract"]) == ["Hà Nội", "Hà Nội", None] * 500
            np.testing.assert_array_equal(
                table.columns["subscriber_tenure_months"], [3.0, 3.0, math.nan] * 500
            )
            assert table.failed.tolist() == [False, False, True] * 500
            for row, key in enumerate(keys[:3]):
                vector = reader.read({"subscriber_id": key}, NOON)
                assert list(vector.status) == [table.status_names(n)[row] for n in parsed.feature_names]
            assert reader.read_many({"subscriber_id": []}, NOON).rows == 0
    finally:
        empty_online_store(project)
    with (
        OnlineFeatureReader(parsed, project, RedisSocket("127.0.0.1", 9)) as unreachable,
        pytest.raises(OnlineStoreError, match="does not answer"),
    ):
        unreachable.read_many({"subscriber_id": ["fresh"]}, NOON)
