"""The direct way: a request to a hot route goes from its bytes to the handler, past HTTP parser and ASGI.

Those two, as uvicorn does them, cost about what the decision itself does. What can be said of a request at a
glance goes this way: a POST to exactly the path of a hot route that has arrived whole, with one
`Content-Length`, a plain head and JSON. Whatever is out of the ordinary (a body in parts, a query, another
media type, a header that says something of the connection) is left to the parser, from its first byte.
"""

from __future__ import annotations

import asyncio
import re
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any, NamedTuple, Protocol

# Stricter than RFC 9112 demands of a server: no space before the colon, no control character, no folded line.
_HEAD = re.compile(
    rb"POST (/[\x21-\x22\x24-\x3e\x40-\x7e]*) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)+)\r\n"
)
_LINE = re.compile(rb"([^:]+):[\t ]*([^\r]*)\r\n")
_JSON = b"application/json"
# The heads of clients that keep their connection differ by nothing but the length: they are read once.
KNOWN_HEADS = 256
KNOWN_HEAD_BYTES = 2048
_OF_ONE_REQUEST = frozenset({b"x-request-id", b"idempotency-key"})
_OF_THE_CONNECTION = frozenset({b"transfer-encoding", b"expect", b"upgrade"})


Reply = Callable[[int, list[tuple[bytes, bytes]], bytes], Awaitable[None]]
"""Writes status, header fields and body of a reply."""


class DirectRoute(Protocol):
    """A route that needs no more of a request than its headers and its body."""

    async def direct(self, headers: Mapping[bytes, bytes], body: bytes, reply: Reply) -> None:
        """Serve one request; errors are replies too."""


class Head(NamedTuple):
    """What the head of a request says: its route, its headers by lower-case name, the length of its body."""

    route: DirectRoute
    headers: Mapping[bytes, bytes]
    length: int


class DirectWay:
    """Knows which requests go the direct way; bodies of more than `max_bytes` do not."""

    def __init__(self, routes: Mapping[str, DirectRoute], max_bytes: int) -> None:
        self._routes = {path.encode(): route for path, route in routes.items()}
        self._max_bytes = max_bytes
        self._known: dict[bytes, Head] = {}

    def head_of(self, data: bytes) -> tuple[Head, bytes] | None:
        """Return head and body if `data` is one request that can be served from what it says itself."""
        end = data.find(b"\r\n\r\n") + 4
        raw = data[:end]
        head = self._known.get(raw)
        if head is None:
            head = self._read(raw)
            if head is None:
                return None
        return (head, data[end:]) if len(data) == end + head.length else None

    def _read(self, raw: bytes) -> Head | None:
        found = _HEAD.fullmatch(raw)
        if found is None or (route := self._routes.get(found[1])) is None:
            return None
        fields = [(name.lower(), value.rstrip(b"\t ")) for name, value in _LINE.findall(found[2])]
        headers = dict(reversed(fields))  # of one that was sent twice the first counts
        length = headers.get(b"content-length", b"")
        if (
            not length.isdigit()
            or len(length) > len(str(self._max_bytes))
            or int(length) > self._max_bytes
            or headers.get(b"content-type") != _JSON
            or headers.get(b"connection", b"keep-alive").lower() != b"keep-alive"
            or not _OF_THE_CONNECTION.isdisjoint(headers)
            or sum(name == b"content-length" for name, _ in fields) != 1
            or sum(name == b"connection" for name, _ in fields) > 1
        ):
            return None
        head = Head(route, headers, int(length))
        if len(raw) <= KNOWN_HEAD_BYTES and _OF_ONE_REQUEST.isdisjoint(headers):
            if len(self._known) >= KNOWN_HEADS:
                self._known.clear()
            self._known[raw] = head
        return head


class DirectCycle:
    """Stands where uvicorn's cycle of request and response does while a request goes the direct way."""

    __slots__ = ("answered", "disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self) -> None:
        self.answered = False  # the reply may still wait in the outbox
        self.message_event = _NOBODY_WAITS
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False


class Outbox:
    """Replies of one turn of the loop, sent one behind the other at its end.

    Each that is sent alone wakes its client, and by the next one the client may sleep again: on a machine
    that does both, that takes more time than the sending.
    """

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def put(self, loop: asyncio.AbstractEventLoop, send: Callable[[], None]) -> None:
        """Send at the end of this turn."""
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append(send)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for send in waiting:
            send()


class _NobodyWaits:
    """The event that wakes who reads a body."""

    def set(self) -> None:
        """Wake nobody: the body is here."""


_NOBODY_WAITS = _NobodyWaits()


def begin(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
    """Run `work` now until it waits for the first time; return the task that goes on from there, if it did.

    A task of its own would begin a turn of the loop later. Until the first wait there is no current task, and
    an error is raised from here.
    """
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    return loop.create_task(_go_on(work, waits_for))


async def _go_on(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _rest(work, waits_for)


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    while True:
        try:
            try:
                yield waits_for
            except BaseException as error:  # thrown in, as a cancellation is: it is for `work`
                waits_for = work.throw(error)
            else:
                waits_for = work.send(None)
        except StopIteration:
            return
