from __future__ import annotations

import asyncio
import json

import pytest
from app.schemas import ChurnReply
from conftest import Service
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_testkit import KEY, NARROW_KEY, SUBSCRIBER, put_view, until

from common_service_libs.schemas import Explanation

pytestmark = pytest.mark.anyio
BODY = {"subscriber_id": SUBSCRIBER}


async def test_a_subscriber_is_decided_recorded_and_replayed_to_the_same_score(service: Service) -> None:
    response = await service.http.post("/predict", json=BODY)
    reply = ChurnReply.model_validate_json(response.content, strict=True)
    assert reply.churn_probability == reply.score
    assert reply.feature_status == {"subscriber_profile": "present"}
    assert reply.degraded is False
    explained = await service.http.post(f"/decisions/{reply.request_id}/explain")
    explanation = Explanation.model_validate_json(explained.content)
    assert explanation.reproduced
    assert {part.feature: part.value for part in explanation.contributions}["subscriber_contract"] == (
        "Month-to-month"
    )
    await until(lambda: reply.request_id in service.store.rows)


async def test_the_same_request_id_gives_the_recorded_reply_with_both_names_of_the_score(
    service: Service,
) -> None:
    replies = [
        (await service.http.post("/predict", json=BODY, headers={"X-Request-ID": "again"})).json()
        for _ in range(2)
    ]
    assert replies[0] == replies[1]
    assert replies[0]["churn_probability"] is not None


async def test_an_unknown_subscriber_cannot_be_scored_and_is_told_so(service: Service) -> None:
    response = await service.http.post("/predict", json={"subscriber_id": 999_999})
    assert response.status_code == 422
    assert response.json()["type"].endswith(":features-missing")
    assert "subscriber_contract" in response.json()["detail"]
    assert service.store.rows == {}


async def test_a_profile_without_what_may_be_null_is_still_scored(service: Service) -> None:
    profile = {
        "subscriber_tenure_months": 3,
        "subscriber_contract": "A contract nobody knows",
        "subscriber_monthly_charges_usd": 50.0,
    }
    put_view(service.redis.data, "subscriber_id", 5, "subscriber_profile", profile, 1_700_000_000.0)
    reply = (await service.http.post("/predict", json={"subscriber_id": 5})).json()
    assert reply["feature_status"] == {"subscriber_profile": "null"}
    assert 0 <= reply["score"] <= 1


async def test_while_the_online_store_is_silent_nothing_is_decided(service: Service) -> None:
    service.redis.mode = "silent"
    response = await service.http.post("/predict", json=BODY)
    assert response.status_code == 503
    assert response.json()["type"].endswith(":features-unavailable")
    assert response.headers["retry-after"] == "1"
    service.redis.mode = "answer"
    await until(lambda: service.runtime.link.up)
    assert (await service.http.post("/predict", json=BODY)).status_code == 200


async def test_a_route_wants_its_scope(service: Service) -> None:
    for key, status in (("", 401), ("wrong", 401), (NARROW_KEY, 403), (KEY, 200)):
        response = await service.http.post("/predict", json=BODY, headers={"X-API-Key": key})
        assert response.status_code == status


async def test_no_body_whatsoever_is_a_server_error(service: Service) -> None:
    bodies: list[bytes] = []

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(
            st.binary(max_size=50),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                lambda inner: (
                    st.lists(inner) | st.dictionaries(st.sampled_from(["subscriber_id", "x"]), inner)
                ),
            ).map(lambda value: json.dumps(value).encode()),
        )
    )
    def collect(body: bytes) -> None:
        bodies.append(body)

    await asyncio.to_thread(collect)
    for body in bodies:
        headers = {"Content-Type": "application/json"}
        response = await service.http.post("/predict", content=body, headers=headers)
        assert response.status_code < 500, body


async def test_the_openapi_document_names_the_decisions(service: Service) -> None:
    document = (await service.http.get("/openapi.json")).json()
    reply = document["components"]["schemas"]["ChurnReply"]["properties"]
    assert reply["decision"]["enum"] == list(service.runtime.policy.decisions)
    assert "churn_probability" in reply
