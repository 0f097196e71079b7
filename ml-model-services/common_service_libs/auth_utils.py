"""API keys: only their SHA-256 is stored, every route asks for a scope, what is not granted is denied."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
from fastapi import Request, Security
from fastapi.security import APIKeyHeader

from common_service_libs.errors import Forbidden, Unauthenticated

logger = logging.getLogger(__name__)

HEADER = "X-API-Key"
RELOAD_SECONDS = 5.0
api_key_header = APIKeyHeader(
    name=HEADER, auto_error=False, description="A key whose hash the service knows."
)


class Client(msgspec.Struct, frozen=True):
    """Who calls, and what they may do."""

    name: str
    sha256: str
    scopes: frozenset[str]


class ApiKeys:
    """The keys in a file, read again when it changes; one that cannot be read leaves the keys as they are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = path.stat().st_mtime_ns
        self._clients = _read(path)

    def authorize(self, key: str | None, scope: str) -> Client:
        """Return the client behind `key`; raises Unauthenticated, or Forbidden if it lacks `scope`."""
        if not key:
            raise Unauthenticated(f"a key in the header {HEADER} is needed")
        digest = hashlib.sha256(key.encode()).hexdigest()
        found = None
        for client in self._clients:  # all of them: the time taken tells nothing
            if hmac.compare_digest(client.sha256, digest):
                found = client
        if found is None:
            raise Unauthenticated("the key is not known")
        if scope not in found.scopes:
            raise Forbidden(f"the key lacks the scope {scope}")
        return found

    async def watch(self) -> None:
        """Read the file again whenever it changes, until cancelled: keys rotate without a restart."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            self.reload()

    def reload(self) -> None:
        """Read the file if it has changed."""
        try:
            changed = self._path.stat().st_mtime_ns
            if changed == self._changed:
                return
            self._clients = _read(self._path)
            self._changed = changed
            logger.info("API keys read again", extra={"clients": len(self._clients)})
        except (OSError, ValueError) as error:
            logger.error("the file of API keys cannot be read", extra={"reason": str(error)})


def _read(path: Path) -> tuple[Client, ...]:
    clients = msgspec.json.decode(path.read_bytes(), type=tuple[Client, ...])
    for client in clients:
        if len(client.sha256) != 64 or not set(client.sha256) <= set("0123456789abcdef"):
            raise ValueError(f"the entry {client.name} holds no SHA-256 in lower-case hex")
    return clients


def require(scope: str) -> Callable[..., Client]:
    """Return the dependency of a route that needs `scope`."""

    def authorized(request: Request, key: str | None = Security(api_key_header)) -> Client:
        keys: ApiKeys = request.app.state.api_keys
        return keys.authorize(key, scope)

    return authorized
