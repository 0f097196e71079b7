"""A policy and lists that change under a running service: which one decided stands in every decision."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from app.core.config import POLICIES, FraudApiConfig
from app.main import create_app
from conftest import Service
from service_testkit import (
    CUSTOMER,
    FakeRedis,
    FakeRegistry,
    FakeStore,
    client_of,
    settings_for,
    until,
)

from common_service_libs.runtime import Runtime

pytestmark = pytest.mark.anyio

GOOD = (POLICIES / "fraud_detection.yaml").read_text()
LIMIT = """
velocity:
  requests_1m: {entity: customer_id, window_seconds: 60}
"""
OFTEN = """
  - id: too-often
    description: Too many requests for one card.
    when: velocity.requests_1m > 3.0
    decision: review
    reason_code: UNUSUALLY_FREQUENT
    owner: tests
    examples: [{given: {velocity.requests_1m: 4.0}, fires: true}]
"""
STRICT = GOOD.replace("version: 2\n", "version: 3\n").replace("220.0", "50.0").replace("220.01", "50.01")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def entry(name: str, entity: str) -> dict[str, str]:
    return {"list": name, "entity": entity, "expires_at": "2100-01-01", "reason": "r", "owner": "o"}


@pytest.fixture
async def policied(
    tmp_path: Path, bundle: tuple[Path, str], redis_server: FakeRedis
) -> AsyncIterator[Service]:
    """The service with a policy and lists of its own, looked at often."""
    registry, store = FakeRegistry(), FakeStore()
    registry.add("fraud-detection-model", 1, *bundle)
    (tmp_path / "policy.yaml").write_text(GOOD)
    (tmp_path / "lists.json").write_text("[]")
    settings = FraudApiConfig(
        **settings_for(
            tmp_path, redis_server, redis_password="secret", policy_file=tmp_path / "policy.yaml",
            lists_file=tmp_path / "lists.json", policy_poll_seconds=0.02,
        )
    )  # fmt: skip
    runtime = Runtime(settings, registry=registry, sink=store, lookup=store)
    async with client_of(create_app(settings, runtime)) as http:
        await until(lambda: runtime.decisions.model is not None)
        yield Service(http, runtime, redis_server, registry, store, tmp_path)


async def test_a_new_policy_decides_and_old_decisions_keep_theirs(policied: Service) -> None:
    before = (await policied.predict()).json()
    assert before["policy"] == {"name": "fraud_detection", "version": 2, "sha256": sha256(GOOD)}
    (policied.folder / "policy.yaml").write_text(STRICT)
    await until(lambda: policied.runtime.policy.version == 3)
    after = (await policied.predict()).json()
    assert after["policy"]["sha256"] == sha256(STRICT)
    assert "AMOUNT_OVER_LIMIT" in after["reason_codes"]
    model = (await policied.http.get("/model")).json()
    assert model["policy"] == after["policy"]
    assert (await policied.http.get("/readyz")).json()["policy"] == after["policy"]
    recorded = (await policied.http.get(f"/decisions/{before['request_id']}")).json()
    assert recorded["policy_sha256"] == sha256(GOOD)
    explained = (await policied.http.post(f"/decisions/{before['request_id']}/explain")).json()
    assert explained["reproduced"] is True


async def test_every_decision_during_swaps_names_the_policy_that_made_it(policied: Service) -> None:
    """70 is over the limit of one policy and under that of the other."""
    texts = {2: GOOD, 3: STRICT}
    replies = []

    async def ask() -> None:
        while len(replies) < 150:
            replies.append((await policied.predict(tx_amount=70.0)).json())
            await asyncio.sleep(0)

    async def change() -> None:
        version = 2
        while len(replies) < 150:
            version = 5 - version
            (policied.folder / "policy.yaml").write_text(texts[version])
            await asyncio.sleep(0.05)

    await asyncio.gather(ask(), ask(), change())
    assert {reply["policy"]["version"] for reply in replies} == {2, 3}
    for reply in replies:
        assert reply["policy"]["sha256"] == sha256(texts[reply["policy"]["version"]])
        assert ("amount-over-limit" in reply["rules_fired"]) == (reply["policy"]["version"] == 3)


async def test_a_policy_that_does_not_fit_the_bundle_is_refused(policied: Service) -> None:
    odd = STRICT.replace(
        "features: [customer_tx_count_30d,", "features: [no_such_feature, customer_tx_count_30d,"
    )
    (policied.folder / "policy.yaml").write_text(odd)
    await until(lambda: policied.metric("policy_swaps_total", outcome="refused") == 1.0)
    assert (await policied.predict()).json()["policy"]["version"] == 2


async def test_an_entity_on_a_list_is_decided_by_it_and_the_record_says_so(policied: Service) -> None:
    def write(*entries: dict[str, str]) -> None:
        (policied.folder / "lists.json").write_text(json.dumps(entries))

    write(entry("trusted_customers", f"customer_id:{CUSTOMER}"))
    await until(lambda: policied.runtime.decisions.lists.sizes() == {"trusted_customers": 1})
    reply = (await policied.predict(tx_amount=260.0)).json()
    assert (reply["decision"], reply["reason_codes"]) == ("approve", ["ON_ALLOW_LIST"])
    assert "amount-over-limit" in reply["rules_fired"]
    record = await policied.runtime.decisions.find(reply["request_id"])
    assert record.policy_inputs == {"lists": {"blocked": False, "trusted_customers": True}, "velocity": {}}
    write(entry("blocked", f"customer_id:{CUSTOMER}"), entry("trusted_customers", f"customer_id:{CUSTOMER}"))
    await until(lambda: "blocked" in policied.runtime.decisions.lists.sizes())
    reply = (await policied.predict(tx_amount=1.0)).json()
    assert (reply["decision"], reply["reason_codes"]) == ("decline", ["ON_BLOCK_LIST"])
    (policied.folder / "lists.json").write_text("[{")
    await until(lambda: policied.metric("list_loads_total", outcome="refused") == 1.0)
    assert (await policied.predict(tx_amount=1.0)).json()["decision"] == "decline"


async def test_a_velocity_that_the_store_does_not_tell_is_null_and_holds_nothing_up(
    policied: Service,
) -> None:
    """The fake knows no sorted sets, and then nothing at all: an error reply and a silent store."""
    (policied.folder / "policy.yaml").write_text(STRICT.replace("\nrules:\n", LIMIT + "\nrules:\n") + OFTEN)
    await until(lambda: policied.runtime.policy.version == 3)
    reply = (await policied.predict()).json()
    assert reply["degraded"] is False
    record = await policied.runtime.decisions.find(reply["request_id"])
    assert record.policy_inputs["velocity"] == {"requests_1m": None}
    policied.redis.mode = "drop"
    reply = (await policied.predict()).json()
    record = await policied.runtime.decisions.find(reply["request_id"])
    assert record.policy_inputs["velocity"] == {"requests_1m": None}
