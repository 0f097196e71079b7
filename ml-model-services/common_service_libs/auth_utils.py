"""API keys: only their SHA-256 is stored, every route asks for a scope, what is not granted is denied.

`python -m common_service_libs.auth_utils new-key --name analyst --scope fraud:read` prints a key once and
writes its hash; `rotate`, `revoke` and `list` are the other commands.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from common_service_libs.errors import Forbidden, Unauthenticated

logger = logging.getLogger(__name__)

HEADER = "X-API-Key"
RELOAD_SECONDS = 5.0
MAX_KEY_CHARACTERS = 512
api_key_header = APIKeyHeader(
    name=HEADER, auto_error=False, description="A key whose hash the service knows."
)
bearer_token = HTTPBearer(
    auto_error=False,
    scheme_name="JWT",
    bearerFormat="JWT",
    description="A token of the issuer that the service is set up with; scopes in `scope` or `scp`.",
)
AwareTime = Annotated[datetime, msgspec.Meta(tz=True)]


class RateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many requests a client may make: `burst` at once, refilled at `per_second` (0: unlimited)."""

    per_second: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    burst: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]


class Client(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who calls, and what they may do. A client has as many entries as keys: two while they rotate."""

    name: str
    sha256: str
    scopes: frozenset[str]
    not_before: AwareTime | None = None
    expires_at: AwareTime | None = None
    rate_limit: RateLimit | None = None


class _Key(msgspec.Struct, frozen=True):
    digest: bytes
    client: Client
    begins: float
    ends: float


class ApiKeys:
    """The keys in a file, read again when it changes; one that cannot be read leaves the keys as they are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = path.stat().st_mtime_ns
        self._keys = _read(path)

    def identify(self, key: str | None) -> Client:
        """Return the client behind `key`; raises Unauthenticated if it is unknown, too early or expired.

        The time a look-up takes tells nothing of use: what is looked up is the hash of what was sent.
        """
        if not key:
            raise Unauthenticated(f"a key in the header {HEADER} is needed")
        if len(key) > MAX_KEY_CHARACTERS:
            raise Unauthenticated("the key is not known")
        digest = hashlib.sha256(key.encode()).digest()
        found = self._keys.get(digest)
        if found is None or not hmac.compare_digest(found.digest, digest):
            raise Unauthenticated("the key is not known")
        if not found.begins <= time.time() < found.ends:
            raise Unauthenticated("the key has expired or is not valid yet")
        return found.client

    def authorize(self, key: str | None, scope: str) -> Client:
        """Return the client behind `key`; raises Unauthenticated, or Forbidden if it lacks `scope`."""
        return require_scope(self.identify(key), scope)

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
            self._keys = _read(self._path)
            self._changed = changed
            logger.info("API keys read again", extra={"keys": len(self._keys)})
        except (OSError, ValueError) as error:
            logger.error("the file of API keys cannot be read", extra={"reason": str(error)})


def require_scope(client: Client, scope: str) -> Client:
    """Return `client`; raises Forbidden if it lacks `scope`."""
    if scope not in client.scopes:
        raise Forbidden(f"the key lacks the scope {scope}")
    return client


def read_clients(path: Path) -> tuple[Client, ...]:
    """Return the entries of a file of keys; raises OSError or ValueError."""
    clients = msgspec.json.decode(path.read_bytes(), type=tuple[Client, ...])
    for client in clients:
        if len(client.sha256) != 64 or not set(client.sha256) <= set("0123456789abcdef"):
            raise ValueError(f"the entry {client.name} holds no SHA-256 in lower-case hex")
    if len({client.sha256 for client in clients}) != len(clients):
        raise ValueError("two entries hold the same key")
    return clients


def _read(path: Path) -> dict[bytes, _Key]:
    keys = [
        _Key(
            bytes.fromhex(client.sha256),
            client,
            client.not_before.timestamp() if client.not_before else float("-inf"),
            client.expires_at.timestamp() if client.expires_at else float("inf"),
        )
        for client in read_clients(path)
    ]
    return {key.digest: key for key in keys}


def require(scope: str) -> Callable[..., Coroutine[Any, Any, Client]]:
    """Return the dependency of a route that needs `scope`."""

    async def authorized(
        request: Request, _key: object = Security(api_key_header), _token: object = Security(bearer_token)
    ) -> Client:
        client: Client = await request.app.state.gate.admit(
            request.headers.get(HEADER), request.headers.get("Authorization"), scope
        )
        return client

    return authorized


if __name__ == "__main__":
    from common_service_libs.security.key_file import main

    main()
