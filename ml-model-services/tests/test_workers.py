"""Workers: their metrics as one, and a supervisor that starts again what ended by itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from service_testkit import REPOSITORY

from common_service_libs import worker_metrics
from common_service_libs.worker_metrics import WorkerMetrics, begin, retire
from common_service_libs.workers import own_socket, require_free

ROOT = REPOSITORY / "ml-model-services"


class Worker:
    """A registry such as a worker has, published under a process id of its own."""

    def __init__(self, folder: Path, pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
        registry = CollectorRegistry()
        self.requests = Counter("requests_total", "Requests.", ("status",), registry=registry)
        self.seconds = Histogram("seconds", "Seconds.", buckets=(0.1, 1.0), registry=registry)
        self.up = Gauge("online_store_up", "Up.", registry=registry)
        self.spool = Gauge("spool_records", "Records.", registry=registry)
        self.model = Gauge("model_info", "Model.", ("version",), registry=registry)
        monkeypatch.setattr(worker_metrics.os, "getpid", lambda: pid)
        self.metrics = WorkerMetrics(registry, folder)
        self.registry = registry

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return parsed(self.metrics.text())


def parsed(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Worker, Worker]:
    begin(tmp_path / "workers")
    return tuple(Worker(tmp_path / "workers", pid, monkeypatch) for pid in (101, 102))


def test_counters_and_histograms_are_summed_and_gauges_by_what_they_say(two: tuple[Worker, Worker]) -> None:
    one, other = two
    one.requests.labels("200").inc(3)
    other.requests.labels("200").inc(4)
    other.requests.labels("503").inc()
    for worker, seconds in ((one, 0.05), (other, 0.5), (other, 5.0)):
        worker.seconds.observe(seconds)
    one.up.set(1)
    other.up.set(0)
    for worker, records in ((one, 7), (other, 5)):
        worker.spool.set(records)
        worker.model.labels("3").set(1)
    other.metrics.publish()
    seen = one.samples()
    assert seen["requests_total", (("status", "200"),)] == 7
    assert seen["requests_total", (("status", "503"),)] == 1
    assert [seen["seconds_bucket", (("le", le),)] for le in ("0.1", "1.0", "+Inf")] == [1, 2, 3]
    assert seen["seconds_sum", ()] == pytest.approx(5.55)
    assert seen["online_store_up", ()] == 0
    assert seen["spool_records", ()] == 12
    assert seen["model_info", (("version", "3"),)] == 1


def test_what_an_ended_worker_counted_stays_and_its_gauges_go(
    two: tuple[Worker, Worker], tmp_path: Path
) -> None:
    one, other = two
    one.requests.labels("200").inc(3)
    other.requests.labels("200").inc(4)
    other.spool.set(9)
    other.metrics.publish()
    before = one.samples()
    retire(tmp_path / "workers", 102)
    retire(tmp_path / "workers", 999)  # one that never published
    after = one.samples()
    assert (
        after["requests_total", (("status", "200"),)] == before["requests_total", (("status", "200"),)] == 7
    )
    assert after["spool_records", ()] == 0
    begin(tmp_path / "workers")
    assert one.samples()["requests_total", (("status", "200"),)] == 3


def test_a_single_workers_text_says_what_its_registry_says(two: tuple[Worker, Worker]) -> None:
    one, _ = two
    one.requests.labels("200").inc()
    one.seconds.observe(0.5)
    assert one.samples() == parsed(generate_latest(one.registry))


SUPERVISED = """
import os, signal, sys, time
from pathlib import Path
from common_service_libs.workers import Supervisor

folder = Path(sys.argv[1])

def work():
    if sys.argv[2] == "cannot start":
        sys.exit("cannot start: a reason")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (folder / str(os.getpid())).touch()
    time.sleep(60)

sys.exit(Supervisor(2, work, ended=lambda pid: (folder / str(pid)).rename(folder / f"ended-{pid}")
                    if (folder / str(pid)).exists() else None).run())
"""


def supervised(folder: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(folder), how],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def living(folder: Path, count: int) -> set[int]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = {int(path.name) for path in folder.iterdir() if path.name.isdigit()}
        if len(found) == count:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{found} are alive, not {count}")


def test_workers_that_cannot_start_end_the_service_and_say_why(tmp_path: Path) -> None:
    process = supervised(tmp_path, "cannot start")
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "cannot start: a reason" in said


def test_an_end_of_the_supervisor_is_the_end_of_its_workers(tmp_path: Path) -> None:
    process = supervised(tmp_path, "well")
    workers = living(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"ended-{pid}" for pid in workers}
    process.stderr.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_supervisor_that_is_killed_leaves_no_worker_behind(tmp_path: Path) -> None:
    process = supervised(tmp_path, "well")
    workers = living(tmp_path, 2)
    process.kill()
    process.wait(10)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    process.stderr.close()


def test_a_port_that_is_served_already_is_not_shared() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            require_free("127.0.0.1", taken.getsockname()[1])
    with own_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with own_socket("127.0.0.1", port) as second:
            assert second.getsockname()[1] == port
