"""The layer itself: an ASGI application that passes on to MLflow's what may pass.

Order: host, health, origin, user, path, role, body. Whatever is not answered here reaches MLflow exactly as
it was checked: one reading of the path, one reading of the body.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy.exc import SQLAlchemyError

from mlflow_guard import bodies, formats, paths, routes
from mlflow_guard.errors import RefusedError
from mlflow_guard.settings import Settings
from mlflow_guard.users import User, UserDirectory

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("mlflow_guard")

PATH_PARAMETERS = frozenset({"path", "artifact_path", "artifact_file_path"})
SPOOLED_IN_MEMORY = 4 << 20
DRAINED_BYTES = 4 << 20
DRAINED_SECONDS = 1.0
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"SAMEORIGIN",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
}
_PAGE_POLICY = b"frame-ancestors 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
_FILE_POLICY = b"sandbox; default-src 'none'; frame-ancestors 'self'"
_FILES = ("/get-artifact", "/model-versions/get-artifact")


@dataclass
class _Request:
    """What the layer reads of a request's head."""

    method: str
    raw_path: bytes
    headers: dict[bytes, list[bytes]]
    query: bytes
    client: str

    @classmethod
    def of(cls, scope: Scope) -> _Request:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        raw_path = scope.get("raw_path") or scope["path"].encode()
        client = (scope.get("client") or ("-",))[0]
        return cls(scope["method"], raw_path.split(b"?")[0], headers, scope.get("query_string", b""), client)

    def one(self, name: bytes) -> str:
        """Return a header that may stand once, '' if it does not; raises RefusedError if it stands twice."""
        values = self.headers.get(name, [])
        if len(values) > 1:
            raise RefusedError(400, f"the header {name.decode()} stands twice")
        return values[0].decode("latin-1") if values else ""


class Layer:
    """MLflow's application behind authentication and checks."""

    def __init__(
        self, app: App, settings: Settings, users: UserDirectory, check_source: Callable[[str], None]
    ) -> None:
        self._app = app
        self._settings = settings
        self._limits = settings.limits
        self._users = users
        self._check_source = check_source
        self._transfers = asyncio.Semaphore(settings.limits.transfers)
        self._hashing = asyncio.Semaphore(2)  # wrong passwords must not take all threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request.of(scope)
        exchange = _Exchange(scope, receive, send, self._limits.idle_seconds)
        who = "-"
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                user = await self._admit(request)
                if user is None:
                    await self._open(request, exchange)
                else:
                    who = user.name
                    await self._serve(request, user, exchange)
        except RefusedError as refusal:
            await self._refuse(request, who, exchange, refusal)
        except TimeoutError:
            late = RefusedError(408, f"a request may take {self._limits.request_seconds:g} s")
            await self._refuse(request, who, exchange, late)

    async def _admit(self, request: _Request) -> User | None:
        """Return whom a request is from, None where it is one that anybody may send; raises RefusedError."""
        if request.method in ("GET", "HEAD") and request.raw_path == routes.HEALTH.encode():
            return None
        if request.one(b"host").lower() not in self._settings.allowed_hosts:
            raise RefusedError(403, "this is not one of the server's hosts")
        origin = request.one(b"origin").lower()
        if origin and origin not in self._settings.allowed_origins:
            raise RefusedError(403, "this origin is not one of the server's")
        if not origin and request.one(b"sec-fetch-site") == "cross-site":
            raise RefusedError(403, "another site's page must not call this server")
        if request.method == "OPTIONS" and origin and request.one(b"access-control-request-method"):
            return None
        return await self._authenticated(request.one(b"authorization"))

    async def _authenticated(self, header: str) -> User:
        name, password = _credentials(header)
        user = self._users.remembered(name, password)
        if user is None:
            try:
                async with self._hashing:
                    user = await asyncio.to_thread(self._users.verify, name, password)
            except SQLAlchemyError:
                raise RefusedError(503, "the database does not answer") from None
        if user is None:
            raise RefusedError(401, "name or password is wrong")
        return user

    async def _open(self, request: _Request, exchange: _Exchange) -> None:
        """Answer what needs no user: whether the database answers, and a browser's preflight."""
        if request.method == "OPTIONS":
            paths.request_path(request.raw_path)
            await self._app(exchange.scope, exchange.empty, exchange.send)
            return
        try:
            await asyncio.to_thread(self._users.refresh)
        except SQLAlchemyError:
            raise RefusedError(503, "the database does not answer") from None
        await exchange.answer(200, b"OK", b"text/plain; charset=utf-8")

    async def _serve(self, request: _Request, user: User, exchange: _Exchange) -> None:
        path = paths.request_path(request.raw_path)
        if path != exchange.scope["path"]:
            raise RefusedError(400, "the path can be read in two ways")
        least = routes.least_role(request.method, path)
        if least is None:
            raise RefusedError(403, "this route is not open on this server")
        if user.role < least:
            raise RefusedError(
                403, f"this needs the role {least.name.lower()}, {user.name} has {user.role.name.lower()}"
            )
        _check_query(request.query)
        if request.one(b"content-encoding") not in ("", "identity"):
            raise RefusedError(415, "encoded bodies are not read")
        artifact = routes.ARTIFACTS.fullmatch(path)
        if path in _FILES or path.endswith("/artifacts/files"):
            exchange.policy = _FILE_POLICY
        if artifact is not None:
            exchange.policy = _FILE_POLICY
            await self._serve_artifact(request, artifact["path"] or "", exchange)
        elif request.method in ("GET", "HEAD"):
            _must_be_empty(request)
            await self._app(exchange.scope, exchange.empty, exchange.send)
        else:
            await self._serve_json(path, request, exchange)

    async def _serve_artifact(self, request: _Request, path: str, exchange: _Exchange) -> None:
        paths.artifact_path(path, file=request.method == "PUT")
        if request.method == "DELETE" and not path.strip("/"):
            raise RefusedError(400, "the whole store is not deleted")
        async with self._transfers:
            if request.method == "PUT":
                formats.check_name(path)
                _declared(request, self._limits.upload_bytes)
                await self._upload(path, exchange)
            else:
                _must_be_empty(request)
                await self._app(exchange.scope, exchange.empty, exchange.send)

    async def _upload(self, path: str, exchange: _Exchange) -> None:
        """Look at the first bytes, at the whole file where that is needed, and pass the file on."""
        upload = _Upload(exchange, self._limits.upload_bytes)
        head = await upload.head()
        formats.check_head(head)
        if not formats.must_be_read_whole(path, head):
            try:
                await self._app(exchange.scope, upload.receive, exchange.send)
            finally:  # to MLflow the rest looked like a lost connection, which it may have raised
                if upload.refusal is not None:
                    raise upload.refusal
            return
        with tempfile.SpooledTemporaryFile(SPOOLED_IN_MEMORY) as spool:
            while chunk := await upload.chunk():
                await asyncio.to_thread(spool.write, chunk)
            spool.seek(0)
            await asyncio.to_thread(formats.check_content, path, spool)
            spool.seek(0)

            async def replay() -> Message:
                chunk = await asyncio.to_thread(spool.read, 1 << 20)
                return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

            await self._app(exchange.scope, replay, exchange.send)

    async def _serve_json(self, path: str, request: _Request, exchange: _Exchange) -> None:
        _declared(request, self._limits.json_bytes)
        upload = _Upload(exchange, self._limits.json_bytes)
        parts = []
        while chunk := await upload.chunk():
            parts.append(chunk)
        body = b"".join(parts)
        if body:
            if request.one(b"content-type").split(";")[0].strip().lower() != "application/json":
                raise RefusedError(415, "the body must be application/json")
            document = bodies.read_json(body)
            source = bodies.check(path, document)
            if source is not None:
                await asyncio.to_thread(self._check_source, source)
            body = json.dumps(document).encode()  # what was checked is what MLflow reads
        elif path.endswith("/create"):
            raise RefusedError(400, "the body is empty")
        await self._app(_with_length(exchange.scope, len(body)), _once(body), exchange.send)

    @staticmethod
    async def _refuse(request: _Request, who: str, exchange: _Exchange, refusal: RefusedError) -> None:
        level = (
            logging.INFO
            if refusal.status == 401 and b"authorization" not in request.headers
            else logging.WARNING
        )
        document = {
            "event": "refused",
            "status": refusal.status,
            "reason": refusal.reason,
            "user": who,
            "client": request.client,
            "method": request.method,
            "path": request.raw_path[:200].decode("latin-1"),
        }
        logger.log(level, json.dumps(document))
        await exchange.refuse(refusal)


class _Exchange:
    """One request and its answer: silence ends it, headers are added, an answer is given once."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, idle_seconds: float) -> None:
        self.scope = scope
        self.policy = _PAGE_POLICY
        self._receive = receive
        self._send = send
        self._idle_seconds = idle_seconds
        self._started = False
        self._silenced = False
        self._ended = False  # the body was read to its end, or the client is gone

    async def receive(self) -> Message:
        """Return the next part of the request; raises RefusedError after too long a silence."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                return await self._receive_noted()
        except TimeoutError:
            raise RefusedError(408, f"nothing came for {self._idle_seconds:g} s") from None

    async def empty(self) -> Message:
        """Give MLflow an empty body; after it comes the end of the connection, whenever that is."""
        message = await self._receive_noted()
        if message["type"] == "http.request":
            return {"type": "http.request", "body": b"", "more_body": False}
        return message

    def silence(self) -> None:
        """Drop whatever MLflow still answers: the layer has the last word."""
        self._silenced = True

    async def send(self, message: Message) -> None:
        """Pass an answer on, with the security headers."""
        if self._silenced:
            return
        if message["type"] == "http.response.start":
            self._started = True
            own = {**_HEADERS, b"content-security-policy": self.policy}
            dropped = {*own, b"server"}
            kept = [
                (name, value) for name, value in message.get("headers", []) if name.lower() not in dropped
            ]
            message = {**message, "headers": [*kept, *own.items()]}
        await self._send(message)

    async def refuse(self, refusal: RefusedError) -> None:
        """Answer with a refusal, unless an answer is under way."""
        self._silenced = False
        if self._started:
            return
        if refusal.status != 408:
            await self._drain()
        code = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 503: "TEMPORARILY_UNAVAILABLE"}
        document = {"error_code": code.get(refusal.status, "BAD_REQUEST"), "message": refusal.reason}
        await self.answer(refusal.status, json.dumps(document).encode(), b"application/json")

    async def _drain(self) -> None:
        """Drop a little more of the body: a client that still sends would see a reset, not the answer."""
        left = DRAINED_BYTES
        try:
            async with asyncio.timeout(DRAINED_SECONDS):
                while left > 0 and not self._ended:
                    left -= len((await self._receive_noted()).get("body", b""))
        except TimeoutError:
            pass

    async def _receive_noted(self) -> Message:
        message = await self._receive()
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def answer(self, status: int, body: bytes, content_type: bytes) -> None:
        """Answer with a body of our own."""
        headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        headers.append((b"cache-control", b"no-store"))
        if status == 401:
            headers.append((b"www-authenticate", b'Basic realm="mlflow", charset="UTF-8"'))
        if status in (408, 413):
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send(
            {"type": "http.response.body", "body": b"" if self.scope["method"] == "HEAD" else body}
        )


class _Upload:
    """A body that is counted while it is read."""

    def __init__(self, exchange: _Exchange, limit: int) -> None:
        self._exchange = exchange
        self._limit = limit
        self._count = 0
        self._ready: list[bytes] = []
        self._ended = False
        self.refusal: RefusedError | None = None

    async def chunk(self) -> bytes:
        """Return the next part, b'' at the end; raises RefusedError beyond the limit."""
        if self._ready:
            return self._ready.pop(0)
        while not self._ended:
            message = await self._exchange.receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "the connection ended within the body")
            self._ended = not message.get("more_body", False)
            body: bytes = message.get("body", b"")
            self._count += len(body)
            if self._count > self._limit:
                raise RefusedError(413, f"the body may have {self._limit} bytes")
            if body:
                return body
        return b""

    async def head(self) -> bytes:
        """Return the first bytes of the body, which are read again afterwards."""
        parts: list[bytes] = []
        while sum(map(len, parts)) < formats.HEAD_BYTES and (part := await self.chunk()):
            parts.append(part)
        self._ready = parts
        return b"".join(parts)[: formats.HEAD_BYTES]

    async def receive(self) -> Message:
        """Give MLflow the body part by part; a body that is refused midway looks like a lost connection."""
        if self.refusal is None:
            try:
                body = await self.chunk()
                return {"type": "http.request", "body": body, "more_body": bool(body)}
            except RefusedError as refusal:
                self.refusal = refusal
                self._exchange.silence()
        return {"type": "http.disconnect"}


def _credentials(header: str) -> tuple[str, str]:
    """Return name and password of a Basic header; raises RefusedError for anything else."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        raise RefusedError(401, "name and password are needed")
    try:
        name, found, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise RefusedError(401, "name and password can't be read") from None
    if not found or not name or not password or len(value) > 1024:
        raise RefusedError(401, "name and password are needed")
    return name, password


def _check_query(query: bytes) -> None:
    try:
        parameters = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise RefusedError(400, "the query is not UTF-8") from None
    for name, value in parameters:
        if name in PATH_PARAMETERS:
            paths.artifact_path(value)
        if any(ord(character) < 0x20 for character in value):
            raise RefusedError(400, f"the parameter {name[:50]} holds a control character")


def _must_be_empty(request: _Request) -> None:
    if request.one(b"content-length") not in ("", "0") or request.headers.get(b"transfer-encoding"):
        raise RefusedError(400, "a request of this kind has no body")


def _declared(request: _Request, limit: int) -> None:
    length = request.one(b"content-length")
    if length and (not length.isascii() or not length.isdigit()):
        raise RefusedError(400, "the length of the body is no number")
    if length and int(length) > limit:
        raise RefusedError(413, f"the body may have {limit} bytes")


def _with_length(scope: Scope, length: int) -> Scope:
    dropped = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _once(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
