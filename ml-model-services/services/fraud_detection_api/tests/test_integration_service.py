"""The service as a process, on the real stack, while servers under it are killed and started again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import TRANSACTION
from service_testkit import CUSTOMER, PROJECT, TERMINAL, fraud_bundle, known_store
from stack_testkit import (
    ServiceProcess,
    fill_online_store,
    forget,
    killed,
    recorded,
    redis_client,
    register,
    unique,
    unregister,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    name = unique("fraud-detection-model")
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    register(name, folder, fraud_bundle(folder, model_name=name))
    yield name
    unregister(name)


@pytest.fixture(scope="module")
def online_store() -> Iterator[None]:
    fill_online_store(known_store())
    yield
    redis_client().delete(*known_store())


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, model: str, online_store: None
) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("service")
    process = ServiceProcess("fraud_detection_api", folder, model_name=model, feast_project=PROJECT)
    try:
        process.wait()
        yield process
    finally:
        process.close()


class Load:
    """Sends requests one after the other, each with an id of its own, and keeps every reply."""

    def __init__(self, service: ServiceProcess) -> None:
        self.prefix = unique("load")
        self.acknowledged: dict[str, dict] = {}
        self.problems: list[dict] = []
        self.broken = 0
        self.slowest = 0.0
        self._service = service
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        headers = {"X-API-Key": self._service.http.headers["X-API-Key"]}
        with httpx.Client(base_url=self._service.url, headers=headers, timeout=10) as http:
            while not self._stop.is_set():
                number += 1
                request_id = f"{self.prefix}-{number}"
                started = time.monotonic()
                try:
                    response = http.post("/predict", json=TRANSACTION, headers={"X-Request-ID": request_id})
                except httpx.TransportError:
                    self.broken += 1
                    time.sleep(0.05)
                    continue
                self.slowest = max(self.slowest, time.monotonic() - started)
                if response.status_code == 200:
                    self.acknowledged[request_id] = response.json()
                else:
                    self.problems.append(response.json())
                time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def count(self) -> int:
        return len(self.acknowledged)

    def wait_for(self, more: int, seconds: float = 20) -> None:
        target, deadline = self.count() + more, time.monotonic() + seconds
        while self.count() < target:
            assert time.monotonic() < deadline, (self.problems[-3:], self._service.log())
            time.sleep(0.02)

    def assert_recorded_exactly_once(self, seconds: float = 20) -> None:
        """Every acknowledged decision is one row, and the row is what was acknowledged."""
        deadline = time.monotonic() + seconds
        rows: dict = {}
        while time.monotonic() < deadline and len(rows) < self.count():
            rows = recorded(list(self.acknowledged))
            time.sleep(0.1)
        assert rows.keys() == self.acknowledged.keys()
        for request_id, reply in self.acknowledged.items():
            assert rows[request_id] == (reply["decision"], reply["score"])
        forget(self.prefix)


def test_a_decision_through_the_real_stack(service: ServiceProcess) -> None:
    reply = service.http.post("/predict", json=TRANSACTION).json()
    assert reply["degraded"] is False
    assert set(reply["feature_status"].values()) == {"present"}
    request_id = reply["request_id"]
    deadline = time.monotonic() + 10
    while request_id not in recorded([request_id]):
        assert time.monotonic() < deadline, service.log()
        time.sleep(0.05)
    explanation = service.http.post(f"/decisions/{request_id}/explain").json()
    assert explanation["reproduced"] is True
    document = service.http.get(f"/decisions/{request_id}").json()
    assert document["entity_ids"] == {"customer_id": CUSTOMER, "terminal_id": TERMINAL}
    forget(request_id)


def test_killing_the_online_store_gives_labelled_decisions_and_it_recovers_by_itself(
    service: ServiceProcess,
) -> None:
    load = Load(service)
    load.wait_for(20)
    with killed("valkey"):
        load.wait_for(50)
        during = service.http.post("/predict", json=TRANSACTION).json()
        assert during["degraded"] is True
        assert during["decision"] == "review"
        assert during["rung"] == "snapshot"
        assert set(during["feature_status"].values()) == {"snapshot"}
        unread = {**TRANSACTION, "customer_id": CUSTOMER + 1, "terminal_id": TERMINAL + 1}
        other = service.http.post("/predict", json=unread).json()
        assert (other["rung"], other["decision"]) == ("defaults", "review")
        assert set(other["feature_status"].values()) == {"unavailable"}
        assert service.http.get("/readyz").status_code == 503
    fill_online_store(known_store())
    service.wait(seconds=10)
    load.wait_for(20)
    load.stop()
    last = list(load.acknowledged.values())[-1]
    assert last["degraded"] is False
    assert load.problems == []
    assert load.broken == 0
    assert load.slowest < 1.0, "a silent store costs its deadline, not the caller's patience"
    load.assert_recorded_exactly_once()
    forget(during["request_id"])
    forget(other["request_id"])


def test_killing_the_database_holds_up_no_decision_and_loses_none(service: ServiceProcess) -> None:
    load = Load(service)
    load.wait_for(20)
    with killed("postgres"):
        load.wait_for(50)
        assert service.http.get("/decisions/nobody-knows").status_code == 503
        assert service.http.get("/readyz").status_code == 200
    load.wait_for(20)
    load.stop()
    assert load.problems == []
    assert load.broken == 0
    assert load.slowest < 2.0
    load.assert_recorded_exactly_once()
    deadline = time.monotonic() + 3  # one probe a second finds the database again
    while service.http.get("/decisions/nobody-knows").status_code != 404:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_killing_the_service_itself_loses_no_acknowledged_decision(service: ServiceProcess) -> None:
    load = Load(service)
    for _ in range(2):
        load.wait_for(50)
        service.kill()
        service.start()
        service.wait()
    load.wait_for(10)
    load.stop()
    load.assert_recorded_exactly_once()


def test_killing_the_service_while_the_database_is_down_loses_no_acknowledged_decision(
    service: ServiceProcess,
) -> None:
    load = Load(service)
    load.wait_for(10)
    with killed("postgres"):
        load.wait_for(30)
        service.kill()
        service.start()
        service.wait()  # the model comes from the local disk: the registry's database is down too
        load.wait_for(30)
    load.stop()
    load.assert_recorded_exactly_once()


def test_a_new_champion_in_the_registry_is_taken_into_service(
    service: ServiceProcess, model: str, tmp_path: Path
) -> None:
    before = service.http.get("/model").json()["model"]["version"]
    sha256 = fraud_bundle(tmp_path / "next", model_name=model, seed=5)
    version = register(model, tmp_path / "next", sha256)
    assert version > before
    deadline = time.monotonic() + 30
    while (document := service.http.get("/model").json()["model"])["version"] != version:
        assert time.monotonic() < deadline, service.log()
        time.sleep(0.1)
    assert document["bundle_sha256"] == sha256


def test_an_end_that_was_asked_for_is_clean_and_leaves_nothing_in_the_spool(service: ServiceProcess) -> None:
    assert service.stop() == 0
    assert list((service.folder / "spool").rglob("*.wal")) == []
