"""The hot route: `POST /predict` as bare ASGI, served before the framework sees the request.

FastAPI stays the application: it documents the route, answers its other methods, and serves everything else.
What middleware, `Request` and resolution of dependencies would do for a decision is done here in one place:
request id, key, body, decision, reply, then metrics and the line in the access log. Errors go through the
application's own handlers, so a problem is the same document wherever it arises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from common_service_libs.decision_record import DecisionRecord
from common_service_libs.errors import BodyTimeout, InvalidRequest, ServiceError
from common_service_libs.json_logs import decision_fields
from common_service_libs.monitoring_middleware import (
    REQUEST_ID,
    SECURITY_HEADERS,
    checked_request_id,
    first_values,
    observe,
    sent_request_id,
)
from common_service_libs.request_body import parse_body, read_body
from common_service_libs.runtime import Runtime

M = TypeVar("M", bound=BaseModel)
M_contra = TypeVar("M_contra", bound=BaseModel, contravariant=True)

_encode = msgspec.json.Encoder().encode
_JSON = b"application/json"
_HEAD = [(b"content-type", _JSON), *SECURITY_HEADERS]


class Decide(Protocol[M_contra]):
    """Decides what a body asks for."""

    async def __call__(
        self, body: M_contra, request_id: str, /, *, id_sent: bool, started: float
    ) -> DecisionRecord:
        """Return the recorded decision; `started` is the `perf_counter` of the request's arrival."""


class HotRoute(Generic[M]):
    """`POST` on one path: a checked body in, a recorded decision out.

    `scope` is what a key has to hold, `decide` gives the record, `reply` turns it (with the policy's name)
    into the document that is sent.
    """

    def __init__(
        self,
        app: FastAPI,
        runtime: Runtime,
        *,
        path: str,
        scope: str,
        body: type[M],
        decide: Decide[M],
        reply: Callable[[DecisionRecord, str], dict[str, Any]],
    ) -> None:
        self.path = path
        self._app = app
        self._runtime = runtime
        self._scope = scope
        self._body = body
        self._decide = decide
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request in the place of the whole application."""
        started = time.perf_counter()
        headers = first_values(scope)
        request_id, sent, valid = checked_request_id(sent_request_id(headers))
        scope.setdefault("state", {})["request_id"] = request_id  # the handlers of errors look there
        status, record, unforeseen = 500, None, None
        try:
            try:
                record = await self._decided(
                    scope, receive, headers, request_id, started, sent=sent, valid=valid
                )
                body = _encode(self._reply(record, self._runtime.policy.name))
                status, fields = 200, _HEAD
            except Exception as error:
                unforeseen = None if isinstance(error, ServiceError) else error
                problem = await self._problem(Request(scope), error)
                status, body = problem.status_code, bytes(problem.body)
                fields = [*_own_headers(problem), *SECURITY_HEADERS]
            fields = [*fields, (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id.encode())]
            await send({"type": "http.response.start", "status": status, "headers": fields})
            await send({"type": "http.response.body", "body": body})
            seconds = time.perf_counter() - started
            await asyncio.sleep(0)  # the reply goes out first, then it is counted and logged
        except BaseException:
            seconds = time.perf_counter() - started
            raise
        finally:
            log = {} if record is None else decision_fields(record)
            observe(self._runtime.metrics, "POST", self.path, status, request_id, seconds, log)
        if unforeseen is not None:
            raise unforeseen  # so that the server and the tests hear of it

    async def endpoint(self, request: Request) -> Response:
        """Serve a request that came through the application's middleware, as behind a path prefix."""
        state = request.state
        record = await self._decided(
            request.scope, request.receive, first_values(request.scope), state.request_id, state.started,
            sent=state.request_id_sent, valid=state.request_id_valid,
        )  # fmt: skip
        state.log = decision_fields(record)
        return Response(_encode(self._reply(record, self._runtime.policy.name)), media_type=_JSON.decode())

    async def _decided(
        self,
        scope: Scope,
        receive: Receive,
        headers: dict[bytes, bytes],
        request_id: str,
        started: float,
        *,
        sent: bool,
        valid: bool,
    ) -> DecisionRecord:
        key, token = headers.get(b"x-api-key"), headers.get(b"authorization")
        await self._app.state.gate.admit(
            None if key is None else key.decode("latin-1"),
            None if token is None else token.decode("latin-1"),
            self._scope,
        )
        if not valid:
            raise InvalidRequest(f"X-Request-ID or Idempotency-Key must match {REQUEST_ID.pattern}")
        settings = self._runtime.settings
        raw = await _body(
            scope, receive, headers,
            max_bytes=settings.max_body_bytes, deadline=settings.body_deadline_seconds,
        )  # fmt: skip
        body = parse_body(raw, self._body, max_nesting=settings.max_nesting)
        return await self._decide(body, request_id, id_sent=sent, started=started)

    async def _problem(self, request: Request, error: Exception) -> Response:
        handlers: dict[Any, Any] = self._app.exception_handlers
        handler = next(handlers[cls] for cls in type(error).__mro__ if cls in handlers)
        problem: Response = await handler(request, error)
        return problem


def _own_headers(response: Response) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in response.raw_headers if name != b"content-length"]


async def _body(
    scope: Scope, receive: Receive, headers: dict[bytes, bytes], *, max_bytes: int, deadline: float
) -> bytes:
    """Return the body as `read_body` does, which is asked whenever something is out of the ordinary."""
    length = headers.get(b"content-length", b"")
    usual = headers.get(b"content-type") == _JSON and length.isdigit() and int(length) <= max_bytes
    if not usual:
        return await read_body(Request(scope, receive), max_bytes=max_bytes, deadline=deadline)
    try:
        async with asyncio.timeout(deadline):
            message = await receive()
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {deadline:g} s") from None
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) <= max_bytes:
            return body
    return await read_body(Request(scope, _again(message, receive)), max_bytes=max_bytes, deadline=deadline)


def _again(message: Message, receive: Receive) -> Receive:
    """Return a `receive` that begins with a message which was received already."""
    received = [message]

    async def replay() -> Message:
        return received.pop() if received else await receive()

    return replay
