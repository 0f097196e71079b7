"""Shadow decisions in PostgreSQL: once each, as long as the retention says, and silence is told."""

from __future__ import annotations

import time

import psycopg
import pytest
from stack_testkit import conninfo, unique

from common_service_libs.errors import DecisionStoreUnavailable
from common_service_libs.rollout.shadow_store import ShadowDecision, ShadowStore

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


def decision(service: str, request_id: str, days_ago: float = 0, bundle: str = "a" * 64) -> ShadowDecision:
    return ShadowDecision(
        request_id=request_id, bundle_sha256=bundle, service=service, model_name="a-model", model_version=3,
        score=0.125, decision="review", created_at=time.time() - days_ago * 86400,
    )  # fmt: skip


async def test_a_shadow_decision_is_one_row_a_bundle_and_goes_when_its_time_is_over() -> None:
    service = unique("shadow-store")
    store = ShadowStore(conninfo(), deadline=10)
    first, old = decision(service, f"{service}-1"), decision(service, f"{service}-2", days_ago=31)
    assert await store.insert([first, old]) == 2
    assert await store.insert([first, decision(service, f"{service}-1", bundle="b" * 64)]) == 1
    assert await store.forget(service, 30) == 1
    await store.close()
    with psycopg.connect(conninfo(), autocommit=True) as connection:
        columns = "request_id, bundle_sha256, model_name, model_version, score, decision, created_at"
        rows = connection.execute(
            f"delete from decisions.shadow_decisions where service = %s returning {columns}", (service,)
        ).fetchall()
    assert {row[:2] for row in rows} == {(f"{service}-1", "a" * 64), (f"{service}-1", "b" * 64)}
    assert {row[2:6] for row in rows} == {("a-model", 3, 0.125, "review")}
    assert all(abs(row[6].timestamp() - time.time()) < 60 for row in rows)


async def test_a_silent_database_is_told_within_the_deadline_and_used_again() -> None:
    store = ShadowStore("host=127.0.0.1 port=9 user=nobody dbname=none connect_timeout=2", deadline=0.5)
    with pytest.raises(DecisionStoreUnavailable):
        await store.insert([decision("nobody", "1")])
    await store.close()
