"""A service is told to end while requests keep coming: none that was accepted fails, and the end is clean.

The clients do as those behind a load balancer: they are sent no more once `/readyz` says 503, and open a new
connection where a reply ended the old one.

Run with the settings of a stack: `PYTHONPATH=.:tests python -m faults.drain --scale full`.
"""

from __future__ import annotations

import http.client
import threading
import time
from pathlib import Path
from typing import Any

from service_testkit import KEY

from faults.fraud_service import BODIES, FraudService, fraud_service
from faults.served_app import command_line, result

DRAIN_SECONDS = 1.0
END_SECONDS = 6.0
CLIENTS = {"small": 8, "full": 32}
ROUNDS = {"small": 1, "full": 20}


class Clients:
    """Clients that ask one request after the other until the balancer has noticed the end."""

    def __init__(self, service: FraudService, count: int) -> None:
        self._port = service.process.port
        self.answered = 0
        self.failed: list[str] = []
        self.answered_after_signal = 0
        self.signalled = self.noticed = 0.0
        self._out = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]
        self._threads.append(threading.Thread(target=self._balance))
        for thread in self._threads:
            thread.start()

    def _balance(self) -> None:
        while not self._out.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 503 and self.signalled:
                    self.noticed = time.monotonic()
                    self._out.set()
            finally:
                connection.close()
            time.sleep(0.05)

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
        while not self._out.is_set():
            number += 1
            try:
                connection.request("POST", "/predict", BODIES[number % len(BODIES)], headers)
                reply = connection.getresponse()
                reply.read()
                with self._lock:
                    self.answered += reply.status == 200
                    self.answered_after_signal += bool(self.signalled)
                    if reply.status != 200:
                        self.failed.append(str(reply.status))
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.failed.append(f"{type(error).__name__}: {error}")
                connection.close()
        connection.close()

    def join(self) -> None:
        self._out.set()
        for thread in self._threads:
            thread.join(30)


def results_of(service: FraudService, scale: str) -> list[dict[str, Any]]:
    """Return what was measured; the service has ended."""
    answered = after = left = 0
    failed: list[str] = []
    slowest, code = 0.0, 0
    for turn in range(ROUNDS[scale]):
        if turn:
            service.process.start()
            service.process.wait()
        clients = Clients(service, CLIENTS[scale])
        time.sleep(0.5)
        clients.signalled = time.monotonic()
        code |= service.process.stop()
        slowest = max(slowest, time.monotonic() - clients.signalled)
        clients.join()
        answered += clients.answered
        after += clients.answered_after_signal
        failed += clients.failed
        left += len([path for path in Path(service.folder, "spool").rglob("*.wal") if path.stat().st_size])
    print(failed[:3])
    return [
        result("answered around the end", answered, "requests", None, met=answered > 0),
        result("answered after the signal", after, "requests", None, met=after > 0),
        result("failed", len(failed), "requests", 0, met=not failed),
        result("exit code", code, "", 0, met=code == 0),
        result("left in the spool", left, "segments", 0, met=left == 0),
        result("ended after", round(slowest, 2), "s", END_SECONDS, met=slowest <= END_SECONDS),
    ]


def run(scale: str) -> dict[str, Any]:
    """Return what was measured."""
    with fraud_service(through_proxy=False, drain_seconds=DRAIN_SECONDS) as service:
        return {"results": results_of(service, scale)}


if __name__ == "__main__":
    command_line(__doc__ or "", run)
