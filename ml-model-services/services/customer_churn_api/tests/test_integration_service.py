"""The churn service as a process, on the real stack."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from service_testkit import PROJECT, SUBSCRIBER, churn_bundle, known_store
from stack_testkit import (
    ServiceProcess,
    fill_online_store,
    forget,
    recorded,
    redis_client,
    register,
    unique,
    unregister,
)

pytestmark = pytest.mark.integration


def test_a_decision_through_the_real_stack(tmp_path: Path) -> None:
    name = unique("churn-prediction-model")
    register(name, tmp_path / "bundle", churn_bundle(tmp_path / "bundle", model_name=name))
    fill_online_store(known_store())
    service = ServiceProcess("customer_churn_api", tmp_path, model_name=name, feast_project=PROJECT)
    request_id = unique("churn")
    try:
        service.wait()
        headers = {"X-Request-ID": request_id}
        reply = service.http.post("/predict", json={"subscriber_id": SUBSCRIBER}, headers=headers).json()
        assert reply["churn_probability"] == reply["score"]
        explanation = service.http.post(f"/decisions/{request_id}/explain").json()
        assert explanation["reproduced"] is True
        assert service.http.post("/predict", json={"subscriber_id": 10**12}).status_code == 422
        deadline = time.monotonic() + 10
        while request_id not in recorded([request_id]):
            assert time.monotonic() < deadline, service.log()
            time.sleep(0.05)
    finally:
        service.close()
        unregister(name)
        redis_client().delete(*known_store())
        forget(request_id)
