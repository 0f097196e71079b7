"""A client that sends exactly what it is told, which no library would."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

USERS = {"admin": "ops", "trainer": "trainer", "service": "service"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass
class Server:
    port: int
    passwords: dict[str, str]
    folder: Path
    env: dict[str, str]
    SECRET: ClassVar[str] = "what stands beside the store"

    def call(
        self,
        method: str,
        target: str,
        *,
        role: str | None = "admin",
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request whose target is not touched; `role` None sends no credentials."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Host": f"127.0.0.1:{self.port}"}
        if role is not None:
            sent["Authorization"] = basic(USERS[role], self.passwords[role])
        if content is not None:
            sent["Content-Length"] = str(len(content))
            if not isinstance(body, bytes):
                sent["Content-Type"] = "application/json"
        sent |= headers or {}
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(content)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def healthy(self) -> bool:
        try:
            return self.call("GET", "/health", role=None).status == 200
        except OSError:
            return False
