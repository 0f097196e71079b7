"""OpenTelemetry traces, where OTEL_EXPORTER_OTLP_ENDPOINT is set; otherwise nothing of it is imported or run.

A request is a span with one child per stage of the decision: features, score, policy, record. Stages only
note when they ended; spans are made of that when the request is over, and sent by a thread of the library.
They hold versions and outcomes, never what a client sent.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common_service_libs import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from common_service_libs.decision_record import DecisionRecord

_current: ContextVar[Trace | None] = ContextVar("trace", default=None)
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})
_MAX_TRACEPARENT = 128


class Trace:
    """What is noted of one request while it is served."""

    __slots__ = ("attributes", "began", "span", "stages", "trace_id")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        self.began = time.time_ns()
        self.stages: list[tuple[str, int, int]] = []
        self.attributes: dict[str, str | int | bool] = {}

    def stage(self, name: str) -> None:
        """Note that a stage has ended, which began when the one before it ended; a shadow's are not noted."""
        if self.attributes:
            return
        began = self.stages[-1][2] if self.stages else self.began
        self.stages.append((name, began, time.time_ns()))

    def decided(self, record: DecisionRecord) -> None:
        """Note that the record is durable, and what it says of versions and outcome."""
        if self.attributes:
            return
        self.stage("record")
        self.attributes |= {
            "decision.outcome": record.decision,
            "decision.rung": record.rung,
            "decision.variant": record.variant,
            "decision.degraded": record.degraded,
            "model.name": record.model_name,
            "model.version": record.model_version,
            "policy.version": record.policy_version,
        }

    def batch(self, cases: int) -> None:
        """Note that many cases are decided at once: their stages run into each other and are left out."""
        self.attributes["batch.cases"] = cases

    def skip(self) -> None:
        """Begin the next stage now: what lay between belongs to none."""
        if self.stages:
            self.stages.append(("", self.stages[-1][2], time.time_ns()))
        else:
            self.began = time.time_ns()


def current_trace() -> Trace | None:
    """Return the trace of the request that is being served; none if there are no traces."""
    return _current.get()


def tracer_provider(endpoint: str, service: str) -> TracerProvider:
    """Return what makes and sends spans; raises ValueError if the libraries are not installed.

    Sampling and headers follow the variables that OpenTelemetry defines, such as OTEL_TRACES_SAMPLER.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415  (only when set up)
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise ValueError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but the extra `telemetry` is not installed"
        ) from None
    provider = TracerProvider(
        resource=Resource.create({"service.name": service, "service.version": __version__}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces", timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    return provider


class TraceMiddleware:
    """The outermost layer of an application with traces; continues a trace that a W3C `traceparent` names.

    Spans are named by the templates of the routes of `application`, never by what was asked for.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider, application: Starlette) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415  (only when set up)
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        self._app = app
        self._provider = provider
        self._tracer = provider.get_tracer("common_service_libs", __version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._server = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request within a span."""
        if scope["type"] != "http" or scope["path"] in _QUIET:
            await self._app(scope, receive, send)
            return
        span = self._tracer.start_span("request", context=self._parent(scope), kind=self._server)
        trace = Trace(span)
        token = _current.set(trace)
        status, request_id = 500, ""

        async def watch(message: Message) -> None:
            nonlocal status, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                request_id = next((v.decode() for k, v in message["headers"] if k == b"x-request-id"), "")
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            _current.reset(token)
            self._finish(scope, trace, status, request_id)

    def _parent(self, scope: Scope) -> Any:
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate") and len(value) <= _MAX_TRACEPARENT
        }
        return self._extract(carrier) if carrier else None

    def _finish(self, scope: Scope, trace: Trace, status: int, request_id: str) -> None:
        span = trace.span
        if span.is_recording():
            route = getattr(scope.get("route"), "path", None)
            if route is None:
                known = {getattr(route, "path", "") for route in self._application.routes}
                route = scope["path"] if scope["path"] in known else "unmatched"
            span.update_name(f"{scope['method']} {route}")
            span.set_attributes(
                {
                    "http.request.method": scope["method"],
                    "http.route": route,
                    "http.response.status_code": status,
                    "request.id": request_id,
                    **trace.attributes,
                }
            )
            if status >= 500:
                span.set_status(self._failed)
            self._add_stages(trace)
        span.end()

    def _add_stages(self, trace: Trace) -> None:
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415  (only when set up)

        context = set_span_in_context(trace.span)
        for name, began, ended in trace.stages:
            if name:
                self._tracer.start_span(name, context=context, start_time=began).end(ended)

    def close(self) -> None:
        """Send what is left; a receiver that is silent is waited for a few seconds at most."""
        self._provider.force_flush(3000)
        self._provider.shutdown()
