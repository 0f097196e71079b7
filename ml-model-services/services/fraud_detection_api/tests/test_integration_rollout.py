"""A rollout by alias on the real stack: MLflow's aliases and tags in, shadow decisions in PostgreSQL out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from service_testkit import CUSTOMER, PROJECT, TERMINAL, fraud_bundle, known_store
from stack_testkit import (
    ROOT,
    ServiceProcess,
    conninfo,
    fill_online_store,
    forget,
    redis_client,
    register_all,
    setting,
    unique,
    unregister,
)

from common_service_libs.rollout.choice import position, salt_of

pytestmark = pytest.mark.integration
POLL_SECONDS = 0.5


class Registered:
    """A model of the test's own in the stack's registry, with two versions."""

    def __init__(self, folder: Path) -> None:
        self.name = unique("test-rollout")
        self.sha256 = [
            fraud_bundle(folder / str(seed), model_name=self.name, seed=seed, trees=4 + seed)
            for seed in (1, 2)
        ]
        last = register_all(self.name, dict(zip((folder / "1", folder / "2"), self.sha256, strict=True)))
        self.versions = [last - 1, last]
        self.point("champion", 0)

    def point(self, alias: str, which: int) -> None:
        body = {"name": self.name, "alias": alias, "version": str(self.versions[which])}
        self._call("POST", body)

    def drop(self, alias: str) -> None:
        self._call("DELETE", {"name": self.name, "alias": alias})

    def _call(self, method: str, body: dict[str, str]) -> None:
        url = setting("MLFLOW_TRACKING_URI") + "/api/2.0/mlflow/registered-models/alias"
        httpx.request(method, url, json=body, timeout=10).raise_for_status()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    registered = Registered(tmp_path_factory.mktemp("bundles"))
    yield registered
    unregister(registered.name)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, model: Registered) -> Iterator[ServiceProcess]:
    fill_online_store(known_store())
    folder = tmp_path_factory.mktemp("service")
    process = ServiceProcess(
        "fraud_detection_api", folder, model_name=model.name, feast_project=PROJECT,
        model_poll_seconds=POLL_SECONDS,
    )  # fmt: skip
    try:
        process.wait()
        yield process
    finally:
        process.close()
        redis_client().delete(*known_store())


def command(service: ServiceProcess, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "common_service_libs.rollout", *arguments],
        cwd=ROOT, env=os.environ | {"SPOOL_DIR": str(service.folder / "spool"), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for(service: ServiceProcess, what: Callable[[dict[str, Any]], bool], seconds: float = 20) -> float:
    """Wait until `GET /model` says so, and return how long that took."""
    started = time.monotonic()
    while not what(document := service.http.get("/model").json()):
        assert time.monotonic() - started < seconds, (document, service.log())
        time.sleep(0.02)
    return time.monotonic() - started


def decide(service: ServiceProcess, customer: int, prefix: str) -> dict[str, Any]:
    body = {"customer_id": customer, "terminal_id": TERMINAL, "tx_amount": 57.16}
    response = service.http.post(
        "/predict",
        json=body | {"tx_datetime": "2026-01-31T12:00:00Z"},
        headers={"X-Request-ID": unique(prefix)},
    )
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def test_a_canary_is_given_its_share_by_a_tag_and_keeps_its_customers_over_a_restart(
    service: ServiceProcess, model: Registered
) -> None:
    prefix = unique("canary")
    model.point("canary", 1)
    wait_for(service, lambda document: document["rollout"]["canary"] is not None)
    assert "canary_share 0.5" in command(service, "share", "0.5", "--model", model.name)
    wait_for(service, lambda document: document["rollout"]["canary"]["share"] == 0.5)
    customers = range(CUSTOMER, CUSTOMER + 30)
    variants = {customer: decide(service, customer, prefix)["variant"] for customer in customers}
    chosen = {c for c in customers if position(salt_of(model.sha256[1]), c) < 0.5}
    assert {customer for customer, variant in variants.items() if variant == "canary"} == chosen
    service.kill()
    service.start()
    service.wait()
    reply = decide(service, min(chosen), prefix)
    assert (reply["variant"], reply["model"]["version"]) == ("canary", model.versions[1])
    explanation = service.http.post(f"/decisions/{reply['request_id']}/explain").json()
    assert explanation["reproduced"] is True
    assert explanation["model"]["bundle_sha256"] == model.sha256[1]
    wait_for(service, lambda document: document["rollout"]["verdict"] is not None)
    status = json.loads(command(service, "status", "--service", "fraud_detection_api"))
    assert (status["canary"]["version"], status["share"]) == (model.versions[1], 0.5)
    assert status["verdict"] == "continue"
    model.drop("canary")
    wait_for(service, lambda document: document["rollout"]["canary"] is None)
    forget(prefix)


def test_a_shadow_is_written_beside_the_decisions_and_a_rollback_is_back_within_a_poll(
    service: ServiceProcess, model: Registered
) -> None:
    prefix = unique("shadow")
    model.point("shadow", 1)
    wait_for(service, lambda document: document["rollout"]["shadow"] is not None)
    replies = [decide(service, CUSTOMER, prefix) for _ in range(10)]
    deadline = time.monotonic() + 10
    rows: list[tuple[str, str, float]] = []
    with psycopg.connect(conninfo(), autocommit=True) as connection:
        while len(rows) < len(replies):
            assert time.monotonic() < deadline, service.log()
            time.sleep(0.05)
            if connection.execute("select to_regclass('decisions.shadow_decisions')").fetchone() != (None,):
                rows = connection.execute(
                    "select request_id, bundle_sha256, score from decisions.shadow_decisions "
                    "where starts_with(request_id, %s)", (prefix,),
                ).fetchall()  # fmt: skip
        assert {row[0] for row in rows} == {reply["request_id"] for reply in replies}
        assert {row[1] for row in rows} == {model.sha256[1]}
        assert len({row[2] for row in rows}) == 1
        connection.execute(
            "delete from decisions.shadow_decisions where starts_with(request_id, %s)", (prefix,)
        )
    model.drop("shadow")
    model.point("champion", 1)
    wait_for(service, lambda document: document["model"]["version"] == model.versions[1])
    model.point("champion", 0)
    seconds = wait_for(service, lambda document: document["model"]["version"] == model.versions[0])
    assert seconds < POLL_SECONDS + 1.0, "the bundle is on the local disk: a rollback waits for the poll only"
    forget(prefix)
