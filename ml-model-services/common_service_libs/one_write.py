"""A reply in one write: uvicorn hands over head and body one by one, two system calls and two packets."""

from __future__ import annotations

import asyncio
from typing import Any


class OneWrite:
    """A transport that keeps the head of a reply back until its body comes, which it does at once.

    Everything else goes through as it is; nothing is kept back when the connection ends.
    """

    __slots__ = ("_head", "_transport", "_write", "get_extra_info", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._write = transport.write
        self._head = b""
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write, or keep the head of a reply back."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.endswith(b"\r\n\r\n") and data.startswith(b"HTTP/1.1 ") and data[9:10] != b"1":
            self._head = data
            return
        self._write(data)

    def close(self) -> None:
        """End the connection after what was written."""
        if self._head:
            self._write(self._head)
            self._head = b""
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
