"""What a run leaves behind, in logs, metrics, errors and traces: no id, no key, no token, no body."""

from __future__ import annotations

import io
import json
import logging
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from app.core.config import FraudApiConfig
from app.main import create_app
from conftest import TRANSACTION, Service
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from service_testkit import KEY, FakeRedis, FakeRegistry, FakeStore, client_of, settings_for, until

from common_service_libs.json_logs import JsonFormatter, hashed, use_hash_key
from common_service_libs.runtime import Runtime

pytestmark = pytest.mark.anyio

PLANTED_ID, PLANTED_TEXT = 987654321012, "planted-transaction-text"
PLANTED = (
    KEY, "planted-unknown-key", "planted.bearer.token", str(PLANTED_ID), PLANTED_TEXT, "planted-body",
    "not-used-by-the-fakes", "planted-redis-password",
)  # fmt: skip


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the process would write to standard output, at the most talkative level."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter("fraud_detection_api"))
    handler.addFilter(lambda record: not record.name.startswith(("httpx", "httpcore")))  # the test's client
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel("DEBUG")
    yield out
    root.removeHandler(handler)
    root.setLevel(level)


async def test_nothing_planted_stands_in_logs_metrics_or_errors(
    service: Service, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, errors = service.http, []
    planted = {"customer_id": PLANTED_ID, "terminal_id": PLANTED_ID + 1, "transaction_id": PLANTED_TEXT}
    assert (await service.predict({"X-Request-ID": "r1"}, **planted)).status_code == 200
    bodies: list[Any] = [
        TRANSACTION | {"customer_id": str(PLANTED_ID)},
        TRANSACTION | {"tx_datetime": PLANTED_TEXT},
        TRANSACTION | {"tx_amount": -PLANTED_ID},
        {"note": "planted-body"},
        ["planted-body"],
    ]
    for body in bodies:
        errors.append(await http.post("/predict", json=body))
    raw = {"Content-Type": "application/json"}
    for content in (
        b'{"customer_id": "planted-body',
        b"planted-body",
        b'{"a": [[[[[[[[["planted-body"]]]]]]]]]}',
    ):
        errors.append(await http.post("/predict", content=content, headers=raw))
    errors.append(await service.predict({"X-Request-ID": "r1"}, **planted | {"tx_amount": 1.5}))
    errors.append(await service.predict({"X-API-Key": "planted-unknown-key"}))
    errors.append(await service.predict({"X-API-Key": "", "Authorization": "Bearer planted.bearer.token"}))
    errors.append(await http.get(f"/decisions/{'x' * 200}"))
    service.redis.mode = "garbage"
    assert (await service.predict(**planted)).status_code == 200

    message = f"row of {PLANTED_ID} ({PLANTED_TEXT!r}) is 'planted-body'"

    async def broken(*_: object, **__: object) -> None:
        raise KeyError(message)

    monkeypatch.setattr(service.runtime.decisions, "find", broken)
    errors.append(await http.get("/decisions/r1"))
    assert errors[-1].status_code == 500
    assert {error.status_code for error in errors} >= {400, 401, 409, 422, 500}

    log = lines.getvalue()
    left = {
        "log": log,
        "metrics": (await http.get("/metrics")).text,
        "errors": "".join(f"{error.text}{error.headers}" for error in errors),
        "model": (await http.get("/model")).text,
        "health": (await http.get("/readyz")).text,
    }
    for place, text in left.items():
        assert [secret for secret in PLANTED if secret in text] == [], place
    for metric in (
        'decisions_total{decision="', 'model_version="1"', 'policy_version="', 'rung="online"',
        'feature_status_total{status="', 'route="/decisions/{request_id}",status="500"}',
    ):  # fmt: skip
        assert metric in left["metrics"]
    told = [json.loads(line) for line in log.splitlines()]
    [unforeseen] = [line for line in told if "exception" in line]
    assert "KeyError: …" in unforeseen["exception"]
    decided = next(line for line in told if line.get("request_id") == "r1" and "entities" in line)
    assert decided["entities"] == hashed({"customer_id": PLANTED_ID, "terminal_id": PLANTED_ID + 1})


async def test_the_key_that_hides_ids_is_made_once_and_kept_from_others(service: Service) -> None:
    path = service.folder / "spool" / "log_hash.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before, content = hashed({"customer_id": 1}), path.read_bytes()
    use_hash_key(path)
    assert (hashed({"customer_id": 1}), path.read_bytes()) == (before, content)
    other = service.folder / "other.key"
    use_hash_key(other)
    assert hashed({"customer_id": 1}) != before
    assert len(other.read_bytes()) == 32
    (service.folder / "short.key").write_bytes(b"short")
    with pytest.raises(ValueError, match="fewer than 32 bytes"):
        use_hash_key(service.folder / "short.key")


# --- traces ---------------------------------------------------------------------------------------


class Receiver:
    """An OTLP/HTTP receiver on loopback."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        received = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        received.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def _attributes(span: Any) -> dict[str, Any]:
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes
    }  # fmt: skip


async def test_a_decision_is_a_trace_with_its_stages_that_continues_the_callers(
    tmp_path: Path, redis_server: FakeRedis, bundle: tuple[Path, str], receiver: Receiver, lines: io.StringIO
) -> None:
    registry, store = FakeRegistry(), FakeStore()
    registry.add("fraud-detection-model", 1, *bundle)
    settings = FraudApiConfig(
        **settings_for(tmp_path, redis_server, redis_password="secret", hsts_seconds=600),
        otel_exporter_otlp_endpoint=receiver.url,
    )
    runtime = Runtime(settings, registry=registry, sink=store, lookup=store)
    trace_id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    async with client_of(create_app(settings, runtime)) as http:
        await until(lambda: runtime.decisions.model is not None)
        headers = {"traceparent": f"00-{trace_id}-{parent}-01", "X-Request-ID": "traced"}
        reply = await http.post("/predict", json=TRANSACTION | {"customer_id": PLANTED_ID}, headers=headers)
        assert reply.status_code == 200
        assert reply.headers["strict-transport-security"] == "max-age=600; includeSubDomains"
        assert (
            await http.get(f"/decisions/{PLANTED_TEXT}", headers={"traceparent": "nonsense"})
        ).status_code == 404
        await http.get("/livez")
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    [line] = [line for line in told if line["message"] == "request" and line["request_id"] == "traced"]
    assert line["trace_id"] == trace_id
    spans = {span.name: span for span in receiver.spans if span.trace_id.hex() == trace_id}
    assert set(spans) == {"POST /predict", "features", "score", "policy", "record"}
    request = spans.pop("POST /predict")
    assert request.parent_span_id.hex() == parent
    order = sorted(spans.values(), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in order] == ["features", "score", "policy", "record"]
    for span in order:
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= request.end_time_unix_nano
    about = _attributes(request)
    assert about["request.id"] == "traced"
    assert about["http.route"] == "/predict"
    assert about["http.response.status_code"] == 200
    assert about["decision.rung"] == "online"
    assert (about["model.version"], about["policy.version"]) == (1, runtime.policy.version)
    [other] = [span for span in receiver.spans if span.trace_id.hex() != trace_id]
    assert other.name == "GET /decisions/{request_id}"
    sent = "".join(map(str, receiver.spans))
    assert [secret for secret in PLANTED if secret in sent] == []
