"""The reader against what the Feast SDK itself wrote into a real Redis server."""

from __future__ import annotations

import random
from typing import Any

import pytest
from service_testkit import NOON, contract, contract_document
from stack_testkit import empty_online_store, feast_write, setting, unique

from common_service_libs.online_store import FeatureReader
from common_service_libs.redis_link import RedisLink

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
ENTITIES = 25


def _random_value(kind: str, rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return None
    if kind == "int64":
        return rng.choice([0, 1, -1, 127, 128, 2**31, -(2**40), rng.randrange(10**6)])
    if kind == "float64":
        return rng.choice([0.0, -0.0, 0.1, 1e-300, 1e300, rng.uniform(-1e6, 1e6)])
    return rng.choice(["", "No", "Month-to-month", "Électronique – 月", "x" * 300])


@pytest.mark.parametrize("name", ["fraud_detection_v1", "customer_churn_v1"])
async def test_every_value_that_feast_wrote_is_read_back_value_for_value(name: str) -> None:
    document, parsed, project = contract_document(name), contract(name), unique("parity").replace("-", "_")
    rng = random.Random(name)
    rows = [
        {
            "view": view.name,
            "entity": entity,
            "values": {field.name: _random_value(field.type, rng) for field in view.fields},
            "event_timestamp": round(NOON - rng.uniform(0, 3600), 6),
        }
        for view in parsed.views
        for entity in range(ENTITIES)
        if rng.random() < 0.9
    ]
    written = feast_write(document, project, rows)
    expected = {
        (row["view"], row["entity"]): (row, answer) for row, answer in zip(rows, written, strict=True)
    }
    link = RedisLink(
        setting("REDIS_HOST"), int(setting("REDIS_PORT")), setting("REDIS_PASSWORD"),
        deadline=1, connect_deadline=2,
    )  # fmt: skip
    await link.open()
    compared = 0
    try:
        reader = FeatureReader(parsed, project)
        for entity in range(ENTITIES):
            ids = dict.fromkeys([e.join_key for e in parsed.entities], entity)
            features = await reader.read(link, ids, NOON)
            for view in parsed.views:
                if (view.name, entity) not in expected:
                    assert features.status[view.name] == "missing"
                    continue
                row, answer = expected[view.name, entity]
                nulls = None in answer["values"].values()
                assert features.status[view.name] == ("null" if nulls else "present")
                assert features.event_timestamps[view.name] == row["event_timestamp"]
                for field, value in answer["values"].items():
                    assert features.values[field] == value, (view.name, entity, field)
                    compared += 1
    finally:
        await link.close()
        empty_online_store(project)
    assert compared > 300
