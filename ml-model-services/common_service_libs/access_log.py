"""The access log, written beside `logging`: the same lines as `JsonFormatter`'s, many in one write.

A line by way of `logging` costs a fifth of a decision: a record of twenty fields that nobody reads, locks, a
write and a flush. Lines wait for at most `FLUSH_SECONDS`; a process that is killed loses those.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

import msgspec

from common_service_libs.decision_record import rfc3339
from common_service_libs.telemetry import current_trace

FLUSH_SECONDS = 0.05
MAX_WAITING_BYTES = 1 << 16
LOGGER = "access"


class AccessLog:
    """Writes one line a request to a stream; belongs to one event loop."""

    def __init__(self, service: str, stream: BinaryIO) -> None:
        self._service = service
        self._stream = stream
        self._waiting = bytearray()
        self._flush_at: asyncio.TimerHandle | None = None
        self._encoder = msgspec.json.Encoder(enc_hook=str)
        self._second, self._moment = -1, ""

    def write(self, level: int, fields: Mapping[str, Any]) -> None:
        """Add a line with these fields."""
        line: dict[str, Any] = {
            "time": self._now(),
            "level": logging.getLevelName(level),
            "service": self._service,
            "logger": LOGGER,
            "message": "request",
        }
        trace = current_trace()
        if trace is not None:
            line["trace_id"] = trace.trace_id
        line.update(fields)
        self._waiting += self._encoder.encode(line) + b"\n"
        if len(self._waiting) > MAX_WAITING_BYTES:
            self.flush()
        elif self._flush_at is None:
            self._flush_at = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def _now(self) -> str:
        now = time.time_ns() // 1000
        second, microseconds = divmod(now, 1_000_000)
        if second != self._second:
            self._second, self._moment = second, rfc3339(float(second))[:-8]
        return f"{self._moment}.{microseconds:06d}Z"

    def flush(self) -> None:
        """Write what waits."""
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
        if self._waiting:
            content, self._waiting = bytes(self._waiting), bytearray()
            self._stream.write(content)
            self._stream.flush()
