"""The service with two workers: one service to whoever asks, also while a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import TRANSACTION
from prometheus_client.parser import text_string_to_metric_families
from service_testkit import KEY, PROJECT, fraud_bundle, known_store
from stack_testkit import ServiceProcess, fill_online_store, forget, recorded, redis_client, unique

pytestmark = pytest.mark.integration
MODEL = "fraud-detection-model"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("workers")
    own = folder / "spool" / "fraud_detection_api"
    own.mkdir(parents=True)
    scratch = folder / "bundle"
    sha256 = fraud_bundle(scratch)
    (folder / "spool" / "bundles").mkdir()
    scratch.rename(folder / "spool" / "bundles" / sha256)
    note = {"name": MODEL, "version": 1, "bundle_sha256": sha256}
    (own / "last_good.json").write_text(json.dumps(note))
    fill_online_store(known_store())
    process = ServiceProcess(
        "fraud_detection_api", folder, feast_project=PROJECT, model_name=MODEL, service_workers=2,
        mlflow_tracking_uri="http://127.0.0.1:9", drain_seconds=0,
    )  # fmt: skip
    try:
        process.wait()
        until(lambda: len(workers(process)) == 2)
        yield process
    finally:
        process.close()
        redis_client().delete(*known_store())


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers(service: ServiceProcess) -> list[int]:
    """Return the workers that have published their metrics."""
    folder = service.folder / "spool" / "fraud_detection_api" / "workers"
    return sorted(int(path.stem) for path in folder.glob("*.metrics") if path.stem.isdigit())


def ask(service: ServiceProcess, request_id: str | None = None) -> httpx.Response:
    """Send one transaction on a connection of its own, so that either worker may get it."""
    headers = {"X-API-Key": KEY} | ({"X-Request-ID": request_id} if request_id else {})
    return httpx.post(service.url + "/predict", json=TRANSACTION, headers=headers, timeout=10)


def decided(service: ServiceProcess) -> float:
    """Return how many decisions the service counts, whichever worker answers."""
    text = httpx.get(service.url + "/metrics", timeout=10).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "decisions_total"
    )


def test_both_workers_answer_and_their_metrics_are_one(service: ServiceProcess) -> None:
    before = decided(service)
    replies = [ask(service) for _ in range(40)]
    assert {reply.status_code for reply in replies} == {200}
    until(lambda: [decided(service) - before for _ in range(6)] == [40] * 6)
    slots = list((service.folder / "spool" / "fraud_detection_api" / "decisions").glob("slot-*/*.wal"))
    assert len({path.parent for path in slots}) == 2
    for reply in replies:
        forget(reply.json()["request_id"])


def test_one_request_id_is_one_decision_whichever_worker_is_asked(service: ServiceProcess) -> None:
    request_id = unique("workers")
    replies = [ask(service, request_id) for _ in range(20)]
    given = [reply for reply in replies if reply.status_code == 200]
    assert given
    assert {reply.content for reply in given} == {given[0].content}
    assert {reply.status_code for reply in replies} <= {200, 503}
    until(lambda: request_id in recorded([request_id]))
    row = recorded([request_id])[request_id]
    assert row == (given[0].json()["decision"], given[0].json()["score"])
    assert ask(service, request_id).content == given[0].content
    forget(request_id)


def test_a_worker_that_is_killed_is_started_again_and_what_it_counted_stays(service: ServiceProcess) -> None:
    time.sleep(1.5)  # both have published what they counted so far
    before, counted = workers(service), decided(service)
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(workers(service)) == 2 and before[0] not in workers(service))
    assert before[1] in workers(service)
    request_ids = []
    for _ in range(10):
        reply = ask(service)
        assert reply.status_code == 200
        request_ids.append(reply.json()["request_id"])
    until(lambda: decided(service) >= counted + 10)
    until(lambda: len(recorded(request_ids)) == 10)
    for request_id in request_ids:
        forget(request_id)


def test_an_end_that_was_asked_for_is_clean(service: ServiceProcess) -> None:
    assert service.stop() == 0
    assert list((service.folder / "spool").rglob("*.wal")) == []
    assert not Path(f"/proc/{service._process.pid}").exists()
