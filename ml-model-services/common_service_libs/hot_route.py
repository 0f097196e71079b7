"""The hot route: `POST /predict` served before the framework sees it, as bare ASGI or without even that.

FastAPI stays the application: it documents the route, answers its other methods, and serves everything else.
What middleware, `Request` and resolution of dependencies would do for a decision is done here in one place:
request id, key, body, decision, reply, then metrics and the line in the access log. Errors go through the
application's own handlers, so a problem is the same document wherever it arises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from common_service_libs.decision_record import DecisionRecord
from common_service_libs.direct_way import Reply
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
        headers = first_values(scope)

        async def body() -> bytes:
            return await self._body_of(scope, receive, headers)

        async def reply(status: int, fields: list[tuple[bytes, bytes]], content: bytes) -> None:
            await send({"type": "http.response.start", "status": status, "headers": fields})
            await send({"type": "http.response.body", "body": content})

        await self._serve(headers, body, reply, scope)

    async def direct(self, headers: Mapping[bytes, bytes], body: bytes, reply: Reply) -> None:
        """Serve a request of which headers and body are here; see DirectWay."""

        async def given() -> bytes:
            return body

        await self._serve(headers, given, reply, None)

    async def _serve(
        self,
        headers: Mapping[bytes, bytes],
        body: Callable[[], Awaitable[bytes]],
        reply: Reply,
        scope: Scope | None,
    ) -> None:
        started = time.perf_counter()
        request_id, sent, valid = checked_request_id(sent_request_id(headers))
        if scope is not None:
            scope.setdefault("state", {})["request_id"] = request_id  # the handlers of errors look there
        status, record, unforeseen = 500, None, None
        try:
            try:
                record = await self._decided(headers, body, request_id, started, sent=sent, valid=valid)
                content = _encode(self._reply(record, self._runtime.policy.name))
                status, fields = 200, _HEAD
            except Exception as error:
                unforeseen = None if isinstance(error, ServiceError) else error
                problem = await self._problem(Request(scope or self._scope_of(headers, request_id)), error)
                status, content = problem.status_code, bytes(problem.body)
                fields = [*_own_headers(problem), *SECURITY_HEADERS]
            own = [(b"content-length", b"%d" % len(content)), (b"x-request-id", request_id.encode())]
            await reply(status, [*fields, *own], content)
            seconds = time.perf_counter() - started
            if scope is not None:
                await asyncio.sleep(0)  # the reply goes out first, then it is counted and logged
        except BaseException:
            seconds = time.perf_counter() - started
            raise
        finally:
            log = {} if record is None else decision_fields(record)
            observe(self._runtime.metrics, "POST", self.path, status, request_id, seconds, log)
        if unforeseen is not None:
            raise unforeseen  # so that the server and the tests hear of it

    def _scope_of(self, headers: Mapping[bytes, bytes], request_id: str) -> Scope:
        """Return what the handlers of errors may ask of a request that came without a scope."""
        return {
            "type": "http", "method": "POST", "path": self.path, "raw_path": self.path.encode(),
            "query_string": b"", "root_path": "", "headers": list(headers.items()), "app": self._app,
            "state": {"request_id": request_id},
        }  # fmt: skip

    async def endpoint(self, request: Request) -> Response:
        """Serve a request that came through the application's middleware, as behind a path prefix."""
        state, headers = request.state, first_values(request.scope)

        async def body() -> bytes:
            return await self._body_of(request.scope, request.receive, headers)

        record = await self._decided(
            headers, body, state.request_id, state.started,
            sent=state.request_id_sent, valid=state.request_id_valid,
        )  # fmt: skip
        state.log = decision_fields(record)
        return Response(_encode(self._reply(record, self._runtime.policy.name)), media_type=_JSON.decode())

    async def _decided(
        self,
        headers: Mapping[bytes, bytes],
        body: Callable[[], Awaitable[bytes]],
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
        parsed = parse_body(await body(), self._body, max_nesting=self._runtime.settings.max_nesting)
        return await self._decide(parsed, request_id, id_sent=sent, started=started)

    async def _body_of(self, scope: Scope, receive: Receive, headers: Mapping[bytes, bytes]) -> bytes:
        settings = self._runtime.settings
        return await _body(
            scope, receive, headers,
            max_bytes=settings.max_body_bytes, deadline=settings.body_deadline_seconds,
        )  # fmt: skip

    async def _problem(self, request: Request, error: Exception) -> Response:
        handlers: dict[Any, Any] = self._app.exception_handlers
        handler = next(handlers[cls] for cls in type(error).__mro__ if cls in handlers)
        problem: Response = await handler(request, error)
        return problem


def _own_headers(response: Response) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in response.raw_headers if name != b"content-length"]


async def _body(
    scope: Scope, receive: Receive, headers: Mapping[bytes, bytes], *, max_bytes: int, deadline: float
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
