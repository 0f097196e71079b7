"""The hot route answers, counts and logs what the same request through the framework does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
from conftest import TRANSACTION, Service
from service_testkit import KEY, NARROW_KEY, until

from common_service_libs.direct_way import DirectWay, Head
from common_service_libs.resilience.server import server_of

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}
JSON_UTF8 = "application/json; charset=utf-8"
BODY = json.dumps(TRANSACTION).encode()
VARIES = ("request_id", "latency_ms")


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


REQUESTS: dict[str, dict[str, Any]] = {
    "a decision": {"content": BODY},
    "a decision under an id": {"content": BODY, "headers": {"X-Request-ID": "given-1"}},
    "an unknown customer": {"content": json.dumps(TRANSACTION | {"customer_id": 1}).encode()},
    "a media type with a parameter": {"content": BODY, "headers": {"Content-Type": JSON_UTF8}},
    "a body in parts": {"content": lambda: chunks(BODY[:10], BODY[10:])},
    "no key": {"content": BODY, "headers": {"X-API-Key": ""}},
    "a wrong key": {"content": BODY, "headers": {"X-API-Key": "wrong"}},
    "a key without the scope": {"content": BODY, "headers": {"X-API-Key": NARROW_KEY}},
    "a wrong key beside a body that is none": {"content": b"{", "headers": {"X-API-Key": "wrong"}},
    "a request id of another form": {"content": BODY, "headers": {"X-Request-ID": "a b"}},
    "two request ids": {"content": BODY, "headers": [("X-Request-ID", "a b"), ("X-Request-ID", "fine")]},
    "no media type": {"content": BODY, "headers": {"Content-Type": ""}},
    "another media type": {"content": BODY, "headers": {"Content-Type": "text/plain"}},
    "no body": {"content": b""},
    "no JSON": {"content": b"{"},
    "text after the JSON": {"content": BODY + b" x"},
    "a body nested too deeply": {"content": b"[" * 50 + b"]" * 50},
    "a key twice": {"content": b'{"customer_id": 1, "customer_id": 2}'},
    "an array": {"content": b"[]"},
    "a wrong field": {"content": json.dumps(TRANSACTION | {"tx_amount": "57.16"}).encode()},
    "an unknown field": {"content": json.dumps(TRANSACTION | {"a/b~c": 1}).encode()},
    "two wrong fields": {"content": json.dumps(TRANSACTION | {"tx_amount": -1, "terminal_id": ""}).encode()},
    "a body that is too large": {"content": b" " * 20_000},
    "a body that is too large, in parts": {"content": lambda: chunks(*[b" " * 6000] * 4)},
}  # fmt: skip


async def ask(service: Service, request: dict[str, Any]) -> httpx.Response:
    content = request["content"]
    extra = request.get("headers", {})
    given = list(extra.items()) if isinstance(extra, dict) else extra
    names = {name.lower() for name, _ in given}
    headers = [("X-API-Key", KEY)] * ("x-api-key" not in names)
    headers += list(JSON.items()) * ("content-type" not in names)
    headers += [pair for pair in given if pair[1] != ""]
    url = "/predict"
    del service.http.headers["X-API-Key"]
    try:
        return await service.http.post(
            url, content=content() if callable(content) else content, headers=headers
        )
    finally:
        service.http.headers["X-API-Key"] = KEY


@contextmanager
def through_the_framework(service: Service) -> Iterator[None]:
    app = service.http._transport.app
    hot, app.hot_routes = app.hot_routes, {}
    try:
        yield
    finally:
        app.hot_routes = hot


@asynccontextmanager
async def through_a_socket(service: Service, *, direct: bool) -> AsyncIterator[list[bytes]]:
    """Let the service's client ask a server that listens; yields the bodies that went the direct way."""
    app, runtime = service.http._transport.app, service.runtime
    went: list[bytes] = []

    class Watched(DirectWay):
        def head_of(self, data: bytes) -> tuple[Head, bytes] | None:
            found = super().head_of(data)
            if found is not None:
                went.append(found[1])
            return found

    way = Watched(app.hot_routes, runtime.settings.max_body_bytes)
    server = server_of(
        app, runtime.admission, runtime.drain, direct=way if direct else None, host="127.0.0.1", port=0,
        lifespan="off", drain_seconds=0, max_connections=10, shutdown_seconds=1,
    )  # fmt: skip
    running = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    in_process = service.http
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": KEY}) as client:
        client._app = app
        service.http = client
        try:
            yield went
        finally:
            service.http = in_process
    server.should_exit = True
    await running


def samples(service: Service) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    names = ("http_", "decision", "feature", "rule")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in service.runtime.metrics.registry.collect()
        if family.name.startswith(names) and not family.name.startswith("decision_flush")
        for sample in family.samples
        if not sample.name.endswith(("_created", "_sum", "_bucket", "_flushed_total"))
    }


def comparable(response: httpx.Response) -> tuple[int, dict[str, str], dict[str, Any]]:
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    document = response.json()
    assert response.headers["content-length"] == str(len(response.content))
    assert document["request_id"] == headers["x-request-id"]
    if headers["x-request-id"] != "given-1":
        headers.pop("x-request-id")
    return response.status_code, headers, {k: v for k, v in document.items() if k not in VARIES}


async def observed(
    service: Service, caplog: pytest.LogCaptureFixture, request: dict[str, Any]
) -> tuple[Any, Any, Any]:
    before = samples(service)
    caplog.clear()
    response = await ask(service, request)
    counted = {key: value - before.get(key, 0) for key, value in samples(service).items()}
    lines = [vars(record) for record in caplog.records if record.name == "access"]
    named = ("route", "method", "status", "decision", "entities", "reason_codes", "degraded", "levelname")
    logged = [{name: line.get(name) for name in named} for line in lines]
    assert [line["request_id"] for line in lines] == [response.headers["x-request-id"]]
    assert all(line["milliseconds"] > 0 for line in lines)
    return comparable(response), {key: value for key, value in counted.items() if value}, logged


@pytest.mark.parametrize("name", REQUESTS)
async def test_it_answers_counts_and_logs_what_the_framework_does(
    service: Service, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.setLevel(logging.INFO)
    await service.predict()  # what is counted at the first request only has been counted
    with through_the_framework(service):
        expected = await observed(service, caplog, REQUESTS[name])
    await asyncio.sleep(0.1)  # until the record is in the store
    forget(service, name)
    assert await observed(service, caplog, REQUESTS[name]) == expected


def forget(service: Service, name: str) -> None:
    """Make a request id new again: the second time it would be a repeat."""
    if "given-1" in str(REQUESTS[name]):
        service.store.rows.clear()
        service.runtime.log._recent.clear()


# All that is told by the head or by the body's JSON alone; what is out of the ordinary goes by the parser.
DIRECT = frozenset(REQUESTS) - {
    "a media type with a parameter", "a body in parts", "no media type", "another media type",
    "a body that is too large", "a body that is too large, in parts",
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_direct_way_answers_counts_and_logs_what_the_parser_and_asgi_do(
    service: Service, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.setLevel(logging.INFO)
    found = []
    for direct in (False, True):
        async with through_a_socket(service, direct=direct) as went:
            await service.predict()  # what is counted at the first request only has been counted
            went.clear()
            forget(service, name)
            status, headers, document = (observation := await observed(service, caplog, REQUESTS[name]))[0]
            headers.pop("date")
            found.append(((status, headers, document), *observation[1:]))
            assert bool(went) == (direct and name in DIRECT)
            await asyncio.sleep(0.1)  # until the record is in the store
    assert found[0] == found[1]


async def test_errors_of_the_decision_are_the_same_problems_by_the_direct_way(service: Service) -> None:
    model, service.runtime.decisions._model = service.runtime.decisions.model, None
    async with through_a_socket(service, direct=False):
        expected = await ask(service, REQUESTS["a decision"])
    async with through_a_socket(service, direct=True) as went:
        found = await ask(service, REQUESTS["a decision"])
    service.runtime.decisions._model = model
    assert len(went) == 1
    assert found.status_code == 503
    for response in (found, expected):
        del response.headers["date"]
    assert comparable(found) == comparable(expected)


async def test_an_unforeseen_error_is_a_problem_and_logged_by_the_direct_way(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret in a message")

    monkeypatch.setattr(service.runtime.decisions, "decide", broken)
    async with through_a_socket(service, direct=True) as went:
        response = await ask(service, REQUESTS["a decision"])
        assert len(went) == 1
        assert (response.status_code, "secret" in response.text) == (500, False)
        assert response.json()["request_id"] == response.headers["x-request-id"]
        assert (await ask(service, REQUESTS["a wrong key"])).status_code == 401, "the connection goes on"
    assert service.metric("http_requests_total", method="POST", route="/predict", status="500") == 1
    assert [r.exc_info[0] for r in caplog.records if r.name == "uvicorn.error"] == [ZeroDivisionError]
    assert service.runtime.admission.running == 0


async def test_errors_of_the_decision_are_the_same_problems(service: Service) -> None:
    model, service.runtime.decisions._model = service.runtime.decisions.model, None
    with through_the_framework(service):
        expected = await ask(service, REQUESTS["a decision"])
    found = await ask(service, REQUESTS["a decision"])
    service.runtime.decisions._model = model
    assert found.status_code == 503
    assert found.headers["retry-after"] == "5"
    assert comparable(found) == comparable(expected)


async def test_an_unforeseen_error_is_a_problem_is_counted_and_is_raised_to_the_server(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret in a message")

    monkeypatch.setattr(service.runtime.decisions, "decide", broken)
    response = await ask(service, REQUESTS["a decision"])
    assert response.status_code == 500
    assert response.json()["type"].endswith(":internal-error")
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "secret" not in response.text
    assert service.metric("http_requests_total", method="POST", route="/predict", status="500") == 1
    with pytest.raises(ZeroDivisionError):
        await httpx.AsyncClient(transport=httpx.ASGITransport(service.http._transport.app)).post(
            "http://test/predict", content=BODY, headers=JSON | {"X-API-Key": KEY}
        )


async def test_only_post_of_exactly_this_path_is_hot(service: Service) -> None:
    assert (await service.http.get("/predict")).headers["allow"] == "POST"
    assert (await service.http.post("/predict/", content=BODY, headers=JSON)).status_code == 404
    assert (await service.http.post("/predict?x=1", content=BODY, headers=JSON)).status_code == 200
