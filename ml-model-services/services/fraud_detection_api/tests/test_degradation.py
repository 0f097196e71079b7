from __future__ import annotations

import pytest
from conftest import Service
from service_testkit import until

from common_service_libs.schemas import DecisionDocument

pytestmark = pytest.mark.anyio


async def test_a_known_entity_is_decided_from_the_snapshot_while_the_store_is_silent(
    service: Service,
) -> None:
    online = (await service.predict()).json()
    assert online["rung"] == "online"
    service.redis.mode = "silent"
    reply = (await service.predict()).json()
    assert reply["rung"] == "snapshot"
    assert reply["degraded"] is True
    assert reply["score"] == online["score"]
    assert set(reply["feature_status"].values()) == {"snapshot"}
    assert "FEATURES_DEGRADED" in reply["reason_codes"]
    recorded = await service.http.get(f"/decisions/{reply['request_id']}")
    document = DecisionDocument.model_validate_json(recorded.content)
    assert document.feature_status["customer_daily"].status == "snapshot"
    assert service.metric("decision_rung_total", rung="snapshot") == 1
    assert service.metric("hot_snapshot_entities") == 2
    await until(lambda: service.metric("circuit_breaker_state", dependency="online_store") > 0)


async def test_an_entity_that_was_never_asked_for_takes_the_declared_defaults(service: Service) -> None:
    await service.predict()
    service.redis.mode = "silent"
    reply = (await service.predict(customer_id=1)).json()
    assert reply["rung"] == "defaults"
    assert reply["degraded"] is True
    assert reply["feature_status"]["customer_daily"] == "unavailable"
    assert reply["feature_status"]["terminal_daily"] == "snapshot"


async def test_a_row_of_the_snapshot_that_is_out_of_date_is_stale(service: Service) -> None:
    await service.predict()
    service.redis.mode = "silent"
    reply = (await service.predict(tx_datetime="2026-02-03T12:00:00Z")).json()
    assert reply["rung"] == "snapshot"
    assert reply["feature_status"]["terminal_daily"] == "stale"


async def test_look_ups_stop_waiting_for_a_silent_database(service: Service) -> None:
    service.store.silent = True
    for number in range(3):
        await service.predict({"X-Request-ID": f"lookup-{number}"})
    assert service.metric("circuit_breaker_state", dependency="decision_store") == 1
    response = await service.http.get("/decisions/unknown")
    assert response.status_code == 503
    assert response.json()["type"].endswith(":decision-store-unavailable")


async def test_readiness_says_that_an_end_has_begun(service: Service) -> None:
    ready = await service.http.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["accepting"]) == (200, True)
    service.runtime.drain.begun = True
    ready = await service.http.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["accepting"]) == (503, False)
    assert (await service.http.get("/livez")).status_code == 200
