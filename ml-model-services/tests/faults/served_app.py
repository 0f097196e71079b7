"""A real service behind a real server, on fakes of its stores: what fuzzing and access tests talk to.

The application, its model, policy and HTTP server are the real ones; Redis, MLflow and PostgreSQL are the
test kit's fakes, so that nothing but the service itself can be at fault, and no stack is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import uvicorn
from service_testkit import (
    CUSTOMER,
    NOON,
    SUBSCRIBER,
    TERMINAL,
    FakeRedis,
    FakeRegistry,
    FakeStore,
    churn_bundle,
    fraud_bundle,
    known_store,
    put_view,
    settings_for,
)

from common_service_libs.decision_record import decode

ROOT = Path(__file__).resolve().parents[2]
VIEWER = 42
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "fraud_detection_api": (
        "/predict",
        {
            "customer_id": CUSTOMER, "terminal_id": TERMINAL, "tx_amount": 57.16,
            "tx_datetime": "2026-01-31T12:00:00Z", "transaction_id": "a-1",
        },
    ),
    "customer_churn_api": ("/predict", {"subscriber_id": SUBSCRIBER}),
    "movie_recommendation_api": ("/recommend", {"viewer_id": VIEWER, "k": 5}),
}  # fmt: skip
SCOPES = {
    "fraud_detection_api": "fraud",
    "customer_churn_api": "churn",
    "movie_recommendation_api": "recommendation",
}


class BoundedStore(FakeStore):
    """A store that forgets, so that its memory says nothing about the service's.

    Beside the first decision it holds another service's, with the id `of-another-service`.
    """

    async def insert(self, records: list[bytes]) -> int:
        inserted = await super().insert(records)
        if "of-another-service" not in self.rows:
            first = decode(records[0])
            self.rows["of-another-service"] = msgspec.structs.replace(
                first, request_id="of-another-service", service="another_service"
            )
        for request_id in list(self.rows)[:-2000]:
            del self.rows[request_id]
        return inserted


def _application(service: str, folder: Path, redis: FakeRedis, settings: Mapping[str, Any]) -> Any:
    sys.path.insert(0, str(ROOT / "services" / service))
    from app.core import config  # noqa: PLC0415  (the service's own package)
    from app.main import create_app  # noqa: PLC0415

    from common_service_libs.runtime import Runtime  # noqa: PLC0415

    registry, store = FakeRegistry(), BoundedStore()
    runtime_class: Any = Runtime
    if service == "fraud_detection_api":
        settings_class, build = config.FraudApiConfig, fraud_bundle
    elif service == "customer_churn_api":
        settings_class, build = config.ChurnApiConfig, churn_bundle
    else:
        from recommender_testkit import recommender_bundle  # noqa: PLC0415

        from common_service_libs.recommender_service import RecommenderRuntime  # noqa: PLC0415

        settings_class, build, runtime_class = (
            config.RecommendationApiConfig, recommender_bundle, RecommenderRuntime,
        )  # fmt: skip
        put_view(
            redis.data, "viewer_id", VIEWER, "viewer_history", {"viewer_rated_movie_ids": "1,5,9,33"}, NOON
        )
    # The fakes run in the service's own process: on a busy machine they may need longer than a store would.
    patient = {"online_store_deadline_seconds": 5.0, "online_store_connect_seconds": 5.0}
    made = settings_class(**settings_for(folder, redis) | patient | dict(settings))
    registry.add(made.model_name, 1, folder / "bundle", build(folder / "bundle"))
    return create_app(made, runtime_class(made, registry=registry, sink=store, lookup=store))


async def _serve(service: str, folder: Path, port: int, settings: Mapping[str, Any]) -> None:
    redis = FakeRedis(known_store())
    await redis.start()
    app = _application(service, folder, redis, settings)
    config = uvicorn.Config(
        app, port=port, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=3
    )
    await uvicorn.Server(config).serve()
    await redis.stop()


class ServedApp:
    """The service as a process; its folder is the caller's."""

    def __init__(self, service: str, folder: Path, **settings: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.service = service
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / "service.log").open("ab")
        self.log_file = folder / "service.log"
        environment = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG"}}
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "faults.served_app", service, str(folder), str(self.port),
                json.dumps(settings, default=str),
            ],
            cwd=ROOT, env=environment, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait(self, seconds: float = 60) -> Self:
        """Wait until decisions are given."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        self.stop()
        raise AssertionError(f"{self.service} did not start: {self.log_file.read_text()[-3000:]}")

    def resident_bytes(self) -> int:
        """Return the memory that the process holds now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """Return how many files and sockets the process has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def stop(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self._log.close()

    def __enter__(self) -> Self:
        return self.wait()

    def __exit__(self, *_: object) -> None:
        self.stop()


def result(name: str, value: float, unit: str, target: float | None, *, met: bool) -> dict[str, Any]:
    """Return one line of a report."""
    return {"name": name, "value": value, "unit": unit, "target": target, "met": met}


def command_line(description: str, run: Any) -> None:
    """Run a module's `run` with `--scale` and print its results; exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scale", choices=("small", "full"), default="full")
    given = parser.parse_args()
    results = run(given.scale)["results"]
    for line in results:
        print(f"{'ok    ' if line['met'] else 'MISSED'} {line['name']}: {line['value']:g} {line['unit']}")
    sys.exit(not all(line["met"] for line in results))


if __name__ == "__main__":
    from common_service_libs.json_logs import configure_logging

    name, place, number, given = sys.argv[1:]
    configure_logging(name, json.loads(given).get("log_level", "WARNING"))
    assert threading.active_count() == 1
    asyncio.run(_serve(name, Path(place), int(number), json.loads(given)))
