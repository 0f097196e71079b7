"""The door of the page: which paths there are, what the browser may do, and who comes in."""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import PageConfig

# Gradio has many more: uploads, files of the server, a proxy, other people's models. None of them is needed.
ALLOWED = re.compile(
    r"/|/(login|logout|config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|livez)/?"
    r"|/(assets|static|svelte)/[\w./@~-]*"
    r"|/gradio_api/(app_id|user|login_check|theme\.css|startup-events|cancel|reset|queue/join|queue/data)/?"
    r"|/gradio_api/heartbeat/\w+"
)
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
MAX_BODY_BYTES = 65_536
FAILURES = 5
FAILURE_SECONDS = 60.0


class Guard:
    """Lets only the page's own paths through, from hosts that are meant, and marks every response."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        """Wrap `app`; `hosts` are the names it may be asked by, None for any."""
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        if self._hosts is not None and _host_of(headers.get("host", "")) not in self._hosts:
            # A name that another site has pointed at this machine must not reach the page.
            refusal = PlainTextResponse("unknown host", 400)
        elif not ALLOWED.fullmatch(scope["path"]):
            refusal = PlainTextResponse("not found", 404)
        elif scope["method"] not in ("GET", "HEAD", "POST"):
            refusal = PlainTextResponse("method not allowed", 405)
        elif _too_large(headers):
            refusal = PlainTextResponse("too large", 413)
        else:
            await self._app(scope, receive, marked)
            return
        await refusal(scope, receive, marked)


def _too_large(headers: Headers) -> bool:
    if "transfer-encoding" in headers:
        return True  # the page's own requests say how long they are
    length = headers.get("content-length", "0")
    return not length.isdigit() or int(length) > MAX_BODY_BYTES


def _host_of(header: str) -> str:
    """Return the name in a Host header, without its port.

    >>> _host_of("127.0.0.1:7860"), _host_of("[::1]:7860"), _host_of("localhost")
    ('127.0.0.1', '[::1]', 'localhost')
    """
    return re.sub(r":\d+$", "", header.lower())


def hosts_of(settings: PageConfig) -> frozenset[str] | None:
    """Return the names the page may be asked by: on loopback without a password, loopback's alone."""
    if settings.page_user is None:
        return frozenset({"127.0.0.1", "localhost", "[::1]"})
    return None


class Password:
    """Checks user and password; after FAILURES wrong ones nobody comes in until a minute has passed."""

    def __init__(self, user: str, sha256: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._user = user
        self._sha256 = sha256
        self._clock = clock
        self._failures: list[float] = []
        self._turn = threading.Lock()

    def __call__(self, user: str, password: str) -> bool:
        """Return whether they may come in."""
        digest = hashlib.sha256(password.encode()).hexdigest()
        right = hmac.compare_digest(user.encode(), self._user.encode())
        right &= hmac.compare_digest(digest, self._sha256)
        with self._turn:
            now = self._clock()
            self._failures = [at for at in self._failures if now - at < FAILURE_SECONDS]
            if len(self._failures) >= FAILURES:
                return False
            if not right:
                self._failures.append(now)
            return right
