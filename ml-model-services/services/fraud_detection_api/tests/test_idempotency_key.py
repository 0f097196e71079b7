from __future__ import annotations

import pytest
from conftest import Service

pytestmark = pytest.mark.anyio


async def test_an_idempotency_key_is_the_id_of_the_decision_quoted_or_not(service: Service) -> None:
    first = (await service.predict({"Idempotency-Key": '"payment-1"'})).json()
    assert first["request_id"] == "payment-1"
    for headers in ({"Idempotency-Key": "payment-1"}, {"X-Request-ID": "payment-1"}):
        response = await service.predict(headers)
        assert response.json() == first
        assert response.headers["X-Request-ID"] == "payment-1"
    conflict = await service.predict({"Idempotency-Key": "payment-1"}, tx_amount=1.0)
    assert conflict.status_code == 409


async def test_the_key_counts_before_an_id_that_every_attempt_gets_anew(service: Service) -> None:
    replies = [
        (await service.predict({"Idempotency-Key": "payment-2", "X-Request-ID": f"attempt-{i}"})).json()
        for i in range(2)
    ]
    assert replies[0] == replies[1]
    assert replies[0]["request_id"] == "payment-2"


@pytest.mark.parametrize("request_id", ["", "a b", "-", "x" * 200])
async def test_a_key_does_not_make_up_for_a_request_id_of_another_form(
    service: Service, request_id: str
) -> None:
    response = await service.predict({"Idempotency-Key": "payment-3", "X-Request-ID": request_id})
    assert response.status_code == 422
    assert (await service.predict({"Idempotency-Key": "payment-3"})).status_code == 200


@pytest.mark.parametrize("key", ['""', '"', "a b", '"a', "x" * 200])
async def test_a_key_of_another_form_is_refused(service: Service, key: str) -> None:
    assert (await service.predict({"Idempotency-Key": key})).status_code == 422
