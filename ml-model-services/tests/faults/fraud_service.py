"""A fraud service as the stack runs it, on an online store of its own that may be killed and cut off."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service_testkit import KEY, PROJECT, contract, fraud_bundle
from stack_testkit import ServiceProcess, forget_model, register, unique, unregister

from faults.load import LoadProcess
from faults.private_store import PrivateStore, free_port, identifying_store, private_store
from faults.proxy import ProxyProcess

ENTITIES = 100
STRANGERS = 5
BODIES = [
    json.dumps({"customer_id": number, "terminal_id": number % ENTITIES + 1, "tx_amount": 57.0})
    for number in [*range(1, ENTITIES + 1), *range(10_000, 10_000 + STRANGERS)]
]
"""Bodies about entities that the store knows, then about customers that nobody knows."""


@dataclass
class FraudService:
    """The service, the store behind it and the proxy between them."""

    process: ServiceProcess
    store: PrivateStore
    proxy: ProxyProcess
    folder: Path

    def load(self, **job: Any) -> LoadProcess:
        """Begin to send `BODIES`."""
        return LoadProcess(
            self.folder / f"samples-{time.monotonic_ns()}.json",
            port=self.process.port, path="/predict", headers={"x-api-key": KEY}, bodies=BODIES,
            **{"connections": 32} | job,
        )  # fmt: skip

    def warm_up(self) -> None:
        """Let every entity be read, so that the snapshot knows them all."""
        for body in BODIES:
            reply = self.process.http.post(
                "/predict", content=body, headers={"Content-Type": "application/json"}
            )
            assert reply.status_code == 200, reply.text


@contextmanager
def fraud_service(*, through_proxy: bool = True, **settings: Any) -> Iterator[FraudService]:
    """Start everything, with `settings` of the service, and end it; its decisions are deleted."""
    name = unique("fraud-faults")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bundle = folder / "bundle"
        register(name, bundle, fraud_bundle(bundle, model_name=name))
        try:
            with private_store(folder / "store") as store, ProxyProcess(free_port(), store.port) as proxy:
                store.fill(
                    identifying_store(contract("fraud_detection_v1"), PROJECT, ENTITIES, round(time.time()))
                )
                process = ServiceProcess(
                    "fraud_detection_api", folder,
                    **{
                        "model_name": name, "feast_project": PROJECT, "redis_host": "127.0.0.1",
                        "redis_port": proxy.port if through_proxy else store.port,
                        "redis_password": store.password, "log_level": "WARNING",
                        "kafka_bootstrap_servers": "",
                    } | settings,
                )  # fmt: skip
                try:
                    process.wait()
                    yield FraudService(process, store, proxy, folder)
                finally:
                    process.close()
        finally:
            unregister(name)
            forget_model(name)
