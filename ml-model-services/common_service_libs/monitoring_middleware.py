"""The one middleware: a request id, security headers, metrics by route template, one log line a request."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common_service_libs.access_log import LOGGER, AccessLog
from common_service_libs.metrics import ServiceMetrics

logger = logging.getLogger(LOGGER)
_access_log: AccessLog | None = None

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


class MonitoringMiddleware:
    """Wraps every request; gives its state `request_id`, `request_id_sent`, `request_id_valid`, `started`.

    An endpoint may put fields for the log line into the state as `log`.

    A request id that is not of the documented form is replaced, and `request_id_valid` is false.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id, sent, valid = checked_request_id(sent_request_id(first_values(scope)))
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, request_id_sent=sent, request_id_valid=valid, started=started)
        headers = [*SECURITY_HEADERS, (b"x-request-id", request_id.encode())]
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            log = state.get("log", {})
            seconds = time.perf_counter() - started
            observe(self._metrics, scope["method"], route, status, request_id, seconds, log)


class _Identifiers:
    """Random UUIDs (version 4), out of a reserve of the system's random bytes: one call for 256 of them."""

    def __init__(self) -> None:
        self._reserve: list[str] = []

    def new(self) -> str:
        if not self._reserve:
            digits = os.urandom(16 * 256).hex()
            self._reserve = [_uuid(digits[at : at + 32]) for at in range(0, len(digits), 32)]
        return self._reserve.pop()

    def forget(self) -> None:
        self._reserve.clear()


def _uuid(digits: str) -> str:
    """Return 32 random hexadecimal digits as a UUID of version 4.

    >>> _uuid("f" * 32)
    'ffffffff-ffff-4fff-bfff-ffffffffffff'
    """
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


_identifiers = _Identifiers()
os.register_at_fork(after_in_child=_identifiers.forget)  # no two workers give the same
new_request_id = _identifiers.new


def checked_request_id(sent: bytes | None) -> tuple[str, bool, bool]:
    """Return the id of a request, whether the client sent one, and whether that has the documented form."""
    if sent is None:
        return new_request_id(), False, True
    text = sent.decode("latin-1")
    return (text, True, True) if REQUEST_ID.fullmatch(text) else (new_request_id(), True, False)


def observe(
    metrics: ServiceMetrics,
    method: str,
    route: str,
    status: int,
    request_id: str,
    seconds: float,
    log: Mapping[str, Any],
) -> None:
    """Count a request by its route template and write its line, with the fields of `log`."""
    method = method if method in _METHODS else "other"
    metrics.requests.count(method, route, str(status))
    metrics.seconds.observe(seconds, route)
    level = logging.DEBUG if route in _QUIET else logging.INFO
    if logger.isEnabledFor(level):
        extra: dict[str, Any] = {
            "request_id": request_id, "method": method, "route": route, "status": status,
            "milliseconds": round(seconds * 1000, 3), **log,
        }  # fmt: skip
        if _access_log is None:
            logger.log(level, "request", extra=extra)
        else:
            _access_log.write(level, extra)


def write_to(access_log: AccessLog | None) -> None:
    """Write lines to `access_log` from now on, in the place of `logging`."""
    global _access_log  # noqa: PLW0603 - one process, one log, as with `logging`
    _access_log = access_log


def first_values(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers by name; of one that was sent twice the first counts."""
    pairs: list[tuple[bytes, bytes]] = scope["headers"]
    headers = dict(pairs)
    return headers if len(headers) == len(pairs) else dict(reversed(pairs))


def sent_request_id(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the id that a client gave its request.

    `Idempotency-Key` (quoted or not) counts before `X-Request-ID`, which proxies give to every attempt anew;
    but an `X-Request-ID` of another form than the documented one is given back, and so the request refused.
    """
    key, request_id = headers.get(b"idempotency-key"), headers.get(b"x-request-id")
    if key is None or (request_id is not None and not REQUEST_ID.fullmatch(request_id.decode("latin-1"))):
        return request_id
    return key[1:-1] if len(key) > 2 and key.startswith(b'"') and key.endswith(b'"') else key
