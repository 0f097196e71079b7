"""The access log beside `logging`: the same lines, written together, none kept back for long."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from common_service_libs import access_log, monitoring_middleware
from common_service_libs.access_log import AccessLog
from common_service_libs.json_logs import JsonFormatter
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.monitoring_middleware import observe, write_to

pytestmark = pytest.mark.anyio
FIELDS = {
    "entities": {"customer_id": "abc"},
    "decision": "review",
    "reason_codes": ("A", "B"),
    "degraded": False,
}


class Stream(io.BytesIO):
    writes = 0

    def write(self, content: object) -> int:
        self.writes += 1
        return super().write(content)  # type: ignore[arg-type]

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    found = Stream()
    monkeypatch.setattr(monitoring_middleware.logger, "level", logging.INFO)
    write_to(AccessLog("a_service", found))
    yield found
    write_to(None)


def request(metrics: ServiceMetrics, route: str = "/predict") -> None:
    observe(metrics, "POST", route, 200, "an-id", 0.0015, FIELDS)


async def test_a_line_is_the_one_that_logging_would_write(stream: Stream) -> None:
    ordinary = io.StringIO()
    handler = logging.StreamHandler(ordinary)
    handler.setFormatter(JsonFormatter("a_service"))
    metrics = ServiceMetrics()
    request(metrics)
    access, write = logging.getLogger("access"), monitoring_middleware._access_log
    access.addHandler(handler)
    write_to(None)
    request(metrics)
    access.removeHandler(handler)
    assert write is not None
    write.flush()
    one, other = stream.lines()[0], json.loads(ordinary.getvalue())
    assert list(one) == list(other)
    form = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
    assert form.fullmatch(one.pop("time"))
    assert form.fullmatch(other.pop("time"))
    assert one == other


async def test_lines_are_written_together_and_soon(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "FLUSH_SECONDS", 0.01)
    metrics = ServiceMetrics()
    for _ in range(20):
        request(metrics)
    assert stream.writes == 0
    await asyncio.sleep(0.05)
    assert (stream.writes, len(stream.lines())) == (1, 20)
    request(metrics)
    await asyncio.sleep(0.05)
    assert (stream.writes, len(stream.lines())) == (2, 21)


async def test_much_does_not_wait(stream: Stream) -> None:
    metrics = ServiceMetrics()
    for _ in range(2 * access_log.MAX_WAITING_BYTES // 200):
        request(metrics)
    assert stream.writes >= 1


async def test_health_routes_are_quiet(stream: Stream) -> None:
    request(ServiceMetrics(), "/livez")
    assert monitoring_middleware._access_log is not None
    monitoring_middleware._access_log.flush()
    assert stream.lines() == []
