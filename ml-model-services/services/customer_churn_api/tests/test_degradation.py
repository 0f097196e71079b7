from __future__ import annotations

import pytest
from conftest import Service
from service_testkit import SUBSCRIBER

pytestmark = pytest.mark.anyio


async def test_without_features_nothing_is_decided_but_for_whom_the_snapshot_knows(service: Service) -> None:
    """The policy refuses to decide without a profile; one that was read before is a profile."""
    online = (await service.http.post("/predict", json={"subscriber_id": SUBSCRIBER})).json()
    service.redis.mode = "silent"
    known = (await service.http.post("/predict", json={"subscriber_id": SUBSCRIBER})).json()
    assert (known["rung"], known["degraded"], known["score"]) == ("snapshot", True, online["score"])
    assert known["feature_status"] == {"subscriber_profile": "snapshot"}
    unknown = await service.http.post("/predict", json={"subscriber_id": 2})
    assert unknown.status_code == 503
    assert unknown.json()["type"].endswith(":features-unavailable")
    assert unknown.headers["retry-after"] == "1"
