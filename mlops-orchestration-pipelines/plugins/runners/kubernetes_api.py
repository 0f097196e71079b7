"""The few calls of Kubernetes' API that running a task takes, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from runners.local_process import NotSetUpError

_SECONDS = 30.0
# A log may be silent for long; the connection is then opened anew.
_SILENCE_SECONDS = 300.0


class ApiError(Exception):
    """The API refused; `status` is the HTTP status, the message the API's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class KubernetesApi:
    """The API server of the cluster that this process runs in, and one namespace of it.

    `token_dir` holds `token`, read anew for each call because it is renewed, and `ca.crt`.
    """

    host: str
    port: int
    namespace: str
    token_dir: Path
    encrypted: bool = True

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> KubernetesApi:
        """Read what the kubelet sets and `KUBERNETES_TASK_NAMESPACE`; NotSetUpError names what is missing."""
        names = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_TASK_NAMESPACE")
        if missing := [name for name in names if not environ.get(name)]:
            raise NotSetUpError(f"{', '.join(missing)}: missing; tasks become Jobs inside of a cluster only")
        folder = Path(environ.get("KUBERNETES_TOKEN_DIR") or "/var/run/secrets/kubernetes.io/serviceaccount")
        if not (folder / "token").is_file():
            raise NotSetUpError(f"{folder} holds no token: mount one and set KUBERNETES_TOKEN_DIR")
        return cls(environ[names[0]], int(environ[names[1]]), environ[names[2]], folder)

    def call(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """Return the JSON answer of a call below the namespace; raises ApiError, OSError or HTTPException."""
        connection = self._open(_SECONDS)
        try:
            response = self._ask(connection, method, path, body, query)
            return json.loads(response.read() or b"null")
        finally:
            connection.close()

    def lines(self, path: str, **query: str) -> Iterator[bytes]:
        """Yield the lines of an answer as they come; raises ApiError, OSError or HTTPException."""
        connection = self._open(_SILENCE_SECONDS)
        try:
            response = self._ask(connection, "GET", path, None, query)
            while line := response.readline():
                yield line
        finally:
            connection.close()

    def _open(self, seconds: float) -> http.client.HTTPConnection:
        if not self.encrypted:
            return http.client.HTTPConnection(self.host, self.port, timeout=seconds)
        context = ssl.create_default_context(cafile=str(self.token_dir / "ca.crt"))
        return http.client.HTTPSConnection(self.host, self.port, timeout=seconds, context=context)

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: object,
        query: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        group, _, rest = path.partition("/")
        prefix = "/api/v1" if group == "core" else f"/apis/{group}/v1"
        url = f"{prefix}/namespaces/{quote(self.namespace)}/{rest}"
        if query:
            url += f"?{urlencode(query)}"
        headers = {
            "Authorization": f"Bearer {(self.token_dir / 'token').read_text().strip()}",
            "Accept": "application/json, */*",
            "Content-Type": "application/json",
        }
        connection.request(method, url, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        if response.status >= 300:
            raise ApiError(response.status, _message(response.read()))
        return response


def _message(body: bytes) -> str:
    """Return what an answer says went wrong.

    >>> _message(b'{"kind": "Status", "message": "jobs is forbidden"}'), _message(b"gateway timeout")
    ('jobs is forbidden', 'gateway timeout')
    """
    text = body.decode(errors="replace").strip()
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text or "no reason given"
