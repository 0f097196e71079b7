from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from local_stack import health

ANSWERS = {
    "/ready": (200, "{}"),
    "/waiting": (503, json.dumps({"ready": False, "checks": {"model": False, "online_store": True}})),
    "/broken": (500, "<html>"),
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = ANSWERS[self.path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class named it
        """Say nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_readiness_names_the_checks_that_failed(url: str, free_port: int) -> None:
    assert health.readiness(f"{url}/ready") == "ready"
    assert health.readiness(f"{url}/waiting") == "not ready: model"
    assert health.readiness(f"{url}/broken") == "not ready (500)"
    assert "refused" in health.readiness(f"http://127.0.0.1:{free_port}/")


def test_a_check_ignores_proxies(url: str, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    health.http_ok(f"{url}/ready")


def test_another_status_than_200_is_not_ok(url: str) -> None:
    with pytest.raises(health.NotReadyError, match="503"):
        health.http_ok(f"{url}/waiting")


def test_waiting_gives_up_with_the_last_reason(url: str) -> None:
    health.wait_http(f"{url}/ready", 5, "unused")
    with pytest.raises(TimeoutError, match=r"the API is not ready: .*503"):
        health.wait_http(f"{url}/waiting", 0.3, "the API is not ready")


@pytest.mark.parametrize("check", ["postgres", "valkey", "s3", "broker"])
def test_every_check_says_that_nothing_listens(check: str, free_port: int) -> None:
    words = {"postgres": ["u", "p", "d"], "valkey": ["p"], "s3": ["k", "s", "us-east-1"], "broker": []}[check]
    with pytest.raises(health.NotReadyError):
        getattr(health, check)(free_port, *words)


def test_a_web_server_is_no_broker(url: str) -> None:
    with pytest.raises(health.NotReadyError):
        health.broker(int(url.rpartition(":")[2]))
