"""Canary and shadow in the running service: who decides, what is recorded, and how it ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Service
from service_testkit import (
    CUSTOMER,
    NOON,
    FakeRedis,
    build_bundle,
    contract_document,
    fraud_bundle,
    put_view,
    settings_for,
    until,
)

from common_service_libs.errors import BundleError, DecisionStoreUnavailable
from common_service_libs.rollout.choice import position, salt_of
from common_service_libs.rollout.rollout import Rollout
from common_service_libs.rollout.shadow_store import ShadowDecision
from common_service_libs.rollout.verdict import Limits
from common_service_libs.runtime import Runtime

pytestmark = pytest.mark.anyio
NAME = "fraud-detection-model"


class Rows:
    """Shadow decisions in memory; silent on demand."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], ShadowDecision] = {}
        self.silent = False

    async def insert(self, rows: list[ShadowDecision]) -> int:
        if self.silent:
            raise DecisionStoreUnavailable("the decision database does not answer")
        self.rows |= {(row.request_id, row.bundle_sha256): row for row in rows}
        return len(rows)

    async def forget(self, service: str, days: int) -> int:
        raise AssertionError("nothing is forgotten without a retention")

    async def close(self) -> None:
        return None


@pytest.fixture
def rows(service: Service, monkeypatch: pytest.MonkeyPatch) -> Rows:
    monkeypatch.setattr("common_service_libs.rollout.shadow.WRITE_SECONDS", 0.01)
    rollout(service).shadow._store = kept = Rows()
    return kept


def rollout(service: Service) -> Rollout:
    assert service.runtime.rollout is not None
    return service.runtime.rollout


def add(service: Service, version: int, alias: str, share: str | None = None, **options: Any) -> str:
    """Register a version beside the champion, and give it an alias."""
    folder = service.folder / f"bundle-{version}"
    champion = service.registry.champion
    sha256 = fraud_bundle(folder, **({"seed": version} | options))
    service.registry.add(NAME, version, folder, sha256)
    service.registry.champion = champion
    service.registry.aliases[alias] = version
    if share is not None:
        service.registry.tags[version] = {"canary_share": share}
    return sha256


async def canary(service: Service, share: str = "0.5", version: int = 2, **options: Any) -> str:
    sha256 = add(service, version, "canary", share, **options)
    if float(share):
        await until(lambda: rollout(service).share == float(share) and _canary_version(service) == version)
    else:
        await until(lambda: _canary_version(service) == version)
    return sha256


def _canary_version(service: Service) -> int | None:
    document = rollout(service).document()["canary"]
    return None if document is None else document["version"]


async def decided(service: Service, customers: range) -> dict[int, dict[str, Any]]:
    replies = {}
    for customer in customers:
        response = await service.predict(customer_id=customer)
        assert response.status_code == 200, response.text
        replies[customer] = response.json()
    return replies


async def test_nothing_rolled_out_costs_nothing_and_says_so(service: Service) -> None:
    assert service.runtime.decisions.rollout is None
    assert (await service.predict()).json()["variant"] == "champion"
    state = (await service.http.get("/model")).json()["rollout"]
    assert state == {"canary": None, "shadow": None, "verdict": None}


async def test_the_same_customers_get_the_canary_and_a_larger_share_only_adds_some(service: Service) -> None:
    sha256 = await canary(service, "0.3")
    customers = range(1000, 1040)
    first = await decided(service, customers)
    chosen = {customer for customer, reply in first.items() if reply["variant"] == "canary"}
    assert chosen == {c for c in customers if position(salt_of(sha256), c) < 0.3}
    assert 4 <= len(chosen) <= 24
    for reply in first.values():
        wanted = (2, sha256) if reply["variant"] == "canary" else (1, service.registry.versions[1][1])
        assert (reply["model"]["version"], reply["model"]["bundle_sha256"]) == wanted
    other_terminal = await service.predict(customer_id=min(chosen), terminal_id=1)
    assert other_terminal.json()["variant"] == "canary", "it is the customer who is given the canary"
    service.registry.tags[2] = {"canary_share": "0.7"}
    await until(lambda: rollout(service).share == 0.7)
    second = await decided(service, customers)
    grown = {customer for customer, reply in second.items() if reply["variant"] == "canary"}
    assert chosen < grown
    assert service.metric("rollout_canary_share") == 0.7
    assert service.metric("rollout_decisions_total", variant="canary") > 0


async def test_a_canary_waits_without_a_share_and_ends_with_its_alias(service: Service) -> None:
    await canary(service, "0")
    assert (await service.http.get("/model")).json()["rollout"]["canary"]["state"] == "waiting"
    assert {r["variant"] for r in (await decided(service, range(20))).values()} == {"champion"}
    service.registry.tags[2] = {"canary_share": "not a number"}
    await asyncio.sleep(0.1)
    assert rollout(service).share == 0
    service.registry.tags[2] = {"canary_share": "1"}
    await until(lambda: rollout(service).share == 1)
    assert {r["variant"] for r in (await decided(service, range(20))).values()} == {"canary"}
    del service.registry.aliases["canary"]
    await until(lambda: service.runtime.decisions.rollout is None)
    assert (await service.predict()).json()["variant"] == "champion"


async def test_a_decision_of_the_canary_is_recorded_and_explained_with_its_own_bundle(
    service: Service,
) -> None:
    sha256 = await canary(service, "1", trees=9)
    reply = (await service.predict()).json()
    record = (await service.http.get(f"/decisions/{reply['request_id']}")).json()
    assert (record["variant"], record["bundle_sha256"]) == ("canary", sha256)
    del service.registry.aliases["canary"]
    await until(lambda: service.runtime.decisions.rollout is None)
    explanation = (await service.http.post(f"/decisions/{reply['request_id']}/explain")).json()
    assert explanation["reproduced"] is True
    assert explanation["replayed_score"] == reply["score"]
    assert explanation["model"]["bundle_sha256"] == sha256


async def test_a_model_of_another_kind_may_follow(service: Service) -> None:
    folder = service.folder / "bundle-2"
    sha256 = build_bundle(
        folder, "fraud_detection_v1", model_name=NAME, kind="lightgbm",
        thresholds={"review": 0.35, "decline": 0.8},
    )  # fmt: skip
    service.registry.add(NAME, 2, folder, sha256)
    await until(lambda: service.runtime.decisions.model.version == 2)
    reply = (await service.predict()).json()
    assert reply["model"]["bundle_sha256"] == sha256
    assert (await service.http.get("/model")).json()["model_kind"] == "lightgbm"
    explanation = (await service.http.post(f"/decisions/{reply['request_id']}/explain")).json()
    assert explanation["replayed_score"] == reply["score"]


async def test_a_promoted_canary_is_the_champion(service: Service) -> None:
    await canary(service, "1")
    service.registry.champion = 2
    await until(lambda: service.runtime.decisions.model.version == 2)
    reply = (await service.predict()).json()
    assert (reply["variant"], reply["model"]["version"]) == ("champion", 2)


async def test_a_corrupt_canary_is_refused_and_the_old_one_keeps_its_share(service: Service) -> None:
    await canary(service, "1")
    sha256 = add(service, 3, "canary", "0.1")
    (service.folder / "bundle-3" / "model.ubj").write_bytes(b"altered")
    await until(lambda: service.metric("model_swaps_total", outcome="refused") == 1)
    await asyncio.sleep(0.1)
    reply = (await service.predict()).json()
    assert (reply["variant"], reply["model"]["version"]) == ("canary", 2)
    assert reply["model"]["bundle_sha256"] != sha256
    assert rollout(service).share == 1


class _Broken:
    """A scorer that fails, as no bundle that reproduced its golden rows should."""

    def score(self, row: Any) -> float:
        raise BundleError("the model cannot score")

    def contributions(self, row: Any) -> list[float]:
        raise BundleError("the model cannot explain")


async def test_a_canary_that_fails_costs_nobody_a_decision_and_is_stopped_until_another_version(
    service: Service, tmp_path: Path
) -> None:
    await canary(service, "1")
    canary_model = rollout(service)._canary_model
    assert canary_model is not None
    object.__setattr__(canary_model.bundle, "scorer", _Broken())
    replies = await decided(service, range(12))
    assert {(r["variant"], r["model"]["version"]) for r in replies.values()} == {("champion", 1)}
    await until(lambda: rollout(service).share == 0)  # by the service itself
    failures = service.metric("rollout_errors_total", variant="canary")
    assert 5 <= failures <= 12
    await decided(service, range(5))
    assert service.metric("rollout_errors_total", variant="canary") == failures, "it is asked no more"
    assert service.metric("rollout_aborts_total") == 1
    assert service.metric("rollout_canary_share") == 0
    state = (await service.http.get("/model")).json()["rollout"]
    assert (state["canary"]["state"], state["canary"]["share"]) == ("aborted", 0)
    assert "errors" in state["canary"]["reason"]
    service.registry.tags[2] = {"canary_share": "0.9"}
    await asyncio.sleep(0.1)
    assert rollout(service).share == 0, "a share alone does not bring it back"
    notes = service.runtime.settings.spool_dir / "fraud_detection_api" / "rollout" / "aborted.json"
    assert notes.exists(), "another process, and the next one, know it too"
    await canary(service, "1", version=3)
    assert not notes.exists()
    assert (await service.predict()).json()["model"]["version"] == 3


async def test_a_request_that_no_model_can_decide_is_no_fault_of_the_canary(service: Service) -> None:
    await canary(service, "1")
    response = await service.predict(tx_amount=-1)
    assert response.status_code == 422
    assert service.metric("rollout_errors_total", variant="canary") == 0


async def test_a_canary_that_alerts_far_more_often_is_stopped_by_the_service_itself(
    service: Service,
) -> None:
    rollout(service)._limits = Limits(minimum=30)
    await canary(service, "0.5", thresholds={"review": 0.0, "decline": 0.0})
    async with asyncio.timeout(20):
        customer = 0
        while rollout(service).share:
            customer += 1
            await service.predict(customer_id=customer)
    assert 60 <= customer < 500
    report = rollout(service).report
    assert report is not None
    assert "share of" in report.reason
    assert {r["variant"] for r in (await decided(service, range(20))).values()} == {"champion"}


async def test_the_stop_of_a_canary_outlives_the_process(
    service: Service, tmp_path: Path, redis_server: FakeRedis
) -> None:
    await canary(service, "1")
    canary_model = rollout(service)._canary_model
    assert canary_model is not None
    object.__setattr__(canary_model.bundle, "scorer", _Broken())
    await decided(service, range(20))
    await rollout(service).check()
    settings = type(service.runtime.settings)(
        **settings_for(tmp_path, redis_server, redis_password="secret", service_name="fraud_detection_api")
    )
    assert settings.spool_dir == service.runtime.settings.spool_dir
    await service.runtime.close()
    again = Runtime(settings, registry=service.registry, sink=service.store, lookup=service.store)
    await again.open()
    try:
        assert again.rollout is not None
        assert again.rollout.document()["canary"]["state"] == "aborted"
        assert again.rollout.share == 0
    finally:
        await again.close()
        await service.runtime.open()  # for the fixture to close


# --- the shadow -------------------------------------------------------------------------------------


async def shadow(service: Service, **options: Any) -> str:
    sha256 = add(service, 7, "shadow", **options)
    await until(lambda: rollout(service).shadow.model is not None)
    return sha256


async def test_the_shadow_decides_live_traffic_for_the_record_only(service: Service, rows: Rows) -> None:
    sha256 = await shadow(service, trees=9)
    replies = await decided(service, range(12))
    assert {r["model"]["version"] for r in replies.values()} == {1}
    await until(lambda: len(rows.rows) == 12)
    assert {key[1] for key in rows.rows} == {sha256}
    assert {row.model_version for row in rows.rows.values()} == {7}
    model = rollout(service).shadow.model
    assert model is not None
    for reply in replies.values():
        record = service.store.rows[reply["request_id"]]
        values = tuple(record.features.values())
        assert rows.rows[reply["request_id"], sha256].score == model.bundle.score(values)
    agreement = rollout(service)._agreement()
    assert agreement.scored == 12
    state = (await service.http.get("/model")).json()["rollout"]
    assert state["shadow"]["version"] == 7
    del service.registry.aliases["shadow"]
    await until(lambda: service.runtime.decisions.rollout is None)


async def test_a_shadow_on_a_contract_of_its_own_reads_what_was_not_read(
    service: Service, rows: Rows, redis_server: FakeRedis
) -> None:
    document = contract_document("fraud_detection_v1")
    document["views"].append(
        {"name": "customer_extra", "entity": "customer", "ttl_seconds": 86400,
         "fields": [{"name": "customer_extra_score", "type": "float64"}]}
    )  # fmt: skip
    put_view(
        redis_server.data, "customer_id", CUSTOMER, "customer_extra", {"customer_extra_score": 1.5}, NOON - 60
    )
    await shadow(service, tamper={"feature_service.json": document})
    reads = redis_server.reads
    await decided(service, range(CUSTOMER, CUSTOMER + 1))
    await until(lambda: len(rows.rows) == 1)
    assert redis_server.reads == reads + 4, "two for the reply, two for the shadow"


async def test_a_shadow_whose_views_were_read_does_not_read_again(
    service: Service, rows: Rows, redis_server: FakeRedis
) -> None:
    await shadow(service)
    reads = redis_server.reads
    await decided(service, range(CUSTOMER, CUSTOMER + 3))
    await until(lambda: len(rows.rows) == 3)
    assert redis_server.reads == reads + 6


async def test_a_shadow_that_fails_or_cannot_write_disturbs_nobody(service: Service, rows: Rows) -> None:
    await shadow(service)
    rows.silent = True
    await decided(service, range(10))
    await until(lambda: service.metric("shadow_decisions_total", outcome="write_failed") > 0)
    model = rollout(service).shadow.model
    assert model is not None
    object.__setattr__(model.bundle, "scorer", _Broken())
    await decided(service, range(10))
    await until(lambda: service.metric("shadow_decisions_total", outcome="failed") == 10)
    rows.silent = False
    await until(lambda: len(rows.rows) == 10)


async def test_a_shadow_that_cannot_keep_up_drops_and_counts(
    service: Service, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common_service_libs.rollout.shadow.QUEUED_CASES", 3)
    await shadow(service)
    gate = asyncio.Event()
    held = rollout(service).shadow
    original = held._score

    async def slow(offer: Any) -> None:
        await gate.wait()
        await original(offer)

    monkeypatch.setattr(held, "_score", slow)
    replies = await decided(service, range(20))
    assert Counter(r["variant"] for r in replies.values()) == {"champion": 20}
    assert (
        service.metric("shadow_decisions_total", outcome="dropped") == 16
    )  # one is being scored, three wait
    gate.set()
    await until(lambda: len(rows.rows) == 4)


async def test_a_store_that_is_away_leaves_the_shadow_nothing_to_say(
    service: Service, rows: Rows, redis_server: FakeRedis
) -> None:
    await shadow(service)
    redis_server.mode = "error"
    await decided(service, range(900_000, 900_005))
    await until(lambda: service.metric("shadow_decisions_total", outcome="skipped") == 5)
    assert rows.rows == {}
