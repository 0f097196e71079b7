"""The application that every decision service is: shared routes, problems, one middleware, one lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, FastAPI, Path, Request
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from common_service_libs import schemas
from common_service_libs.auth_utils import HEADER, ApiKeys, api_key_header, bearer_token, require
from common_service_libs.background import forever
from common_service_libs.decision_record import rfc3339
from common_service_libs.decision_service import ServedModel
from common_service_libs.direct_way import DirectWay
from common_service_libs.error_handlers import Problem, documented, install_error_handlers
from common_service_libs.errors import InvalidRequest, ModelUnavailable
from common_service_libs.hot_route import HotRoute
from common_service_libs.json_logs import use_hash_key
from common_service_libs.monitoring_middleware import REQUEST_ID, MonitoringMiddleware
from common_service_libs.openapi_schemas import hoist_definitions
from common_service_libs.recent_decisions import Before, DecisionPage, Limit, page_of, read_cursor
from common_service_libs.request_body import parse_body, read_body
from common_service_libs.runtime import Runtime
from common_service_libs.security.gate import Gate
from common_service_libs.security.strict_transport import StrictTransport
from common_service_libs.serving import run
from common_service_libs.telemetry import TraceMiddleware, tracer_provider
from common_service_libs.worker_metrics import WorkerMetrics

__all__ = ["run"]

M = TypeVar("M", bound=BaseModel)


RequestId = Annotated[str, Path(pattern=f"^{REQUEST_ID.pattern}$")]


class ServiceApp(FastAPI):
    """The application; its hot routes are served before any of its middleware.

    `outer` is what stands around all of it, traces for one, where settings ask for something.
    """

    outer: ASGIApp | None = None

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.hot_routes: dict[str, HotRoute[Any]] = {}

    def direct_way(self, max_bytes: int) -> DirectWay | None:
        """Return the way past parser and ASGI; none where something stands around the application."""
        return DirectWay(self.hot_routes, max_bytes) if self.outer is None and self.hot_routes else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        await (self.serve if self.outer is None else self.outer)(scope, receive, send)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve without what stands around."""
        if scope["type"] == "http" and scope["method"] == "POST":
            hot = self.hot_routes.get(scope["path"])
            if hot is not None:
                await hot(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class BareRoute(APIRoute):
    """A route whose endpoint takes the request itself and returns the response.

    It stands in OpenAPI like any other; FastAPI's resolution of dependencies and its encoding of the reply,
    which cost more than a decision, are left out. The endpoint checks key and body itself.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint as it is."""
        return self.endpoint


def json_response(document: Any, status: int = 200) -> Response:
    """Return `document` as JSON, encoded in one pass."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")


async def authorized_body(request: Request, scope: str, model: type[M]) -> M:
    """Return the body of a bare route as `model`.

    Raises an AccessError before the body is read, or a RequestError that says what is wrong with it.
    """
    app = request.app
    await app.state.gate.admit(request.headers.get(HEADER), request.headers.get("Authorization"), scope)
    if not request.state.request_id_valid:
        raise InvalidRequest(f"X-Request-ID or Idempotency-Key must match {REQUEST_ID.pattern}")
    settings = app.state.runtime.settings
    body = await read_body(
        request, max_bytes=settings.max_body_bytes, deadline=settings.body_deadline_seconds
    )
    return parse_body(body, model, max_nesting=settings.max_nesting)


def base_app(runtime: Runtime, *, title: str, description: str) -> ServiceApp:
    """Return the application without routes: lifespan, keys, middleware, problem documents."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        use_hash_key(settings.log_hash_key_file or settings.spool_dir / "log_hash.key")
        rotation = asyncio.create_task(forever(app.state.gate.watch))
        await runtime.open()
        app.state.gate.connect(runtime.link)
        shared: WorkerMetrics | None = app.state.worker_metrics
        publishing = None if shared is None else asyncio.create_task(forever(shared.keep_published))
        try:
            yield
        finally:
            if shared is not None and publishing is not None:
                publishing.cancel()
                shared.publish()
            rotation.cancel()
            await runtime.close()
            if traces is not None:
                await asyncio.to_thread(traces.close)

    settings = runtime.settings
    app = ServiceApp(
        title=title,
        description=description,
        version=runtime.version,
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"logs": False},  # they would hold what clients sent
    )
    app.state.runtime = runtime
    app.state.worker_metrics = None
    app.state.gate = Gate(settings, ApiKeys(settings.api_keys_file), runtime.metrics)
    app.add_middleware(MonitoringMiddleware, metrics=runtime.metrics)
    install_error_handlers(app)
    _document_problems(app)
    if settings.hsts_seconds:
        app.outer = StrictTransport(app.serve, settings.hsts_seconds)
    traces = None
    if settings.otel_exporter_otlp_endpoint:
        provider = tracer_provider(settings.otel_exporter_otlp_endpoint, settings.service_name)
        app.outer = traces = TraceMiddleware(app.outer or app.serve, provider, app)
    return app


def add_hot_route(
    app: ServiceApp,
    hot: HotRoute[Any],
    *,
    request_schema: dict[str, Any],
    reply: type[schemas.DecisionReply],
) -> None:
    """Add `POST /predict` as a hot route, documented like any other."""
    add_predict_route(app, hot.endpoint, request_schema=request_schema, reply=reply)
    app.hot_routes[hot.path] = hot


def add_predict_route(
    app: FastAPI,
    endpoint: Callable[[Request], Coroutine[Any, Any, Response]],
    *,
    request_schema: dict[str, Any],
    reply: type[schemas.DecisionReply],
) -> None:
    """Add `POST /predict` as a bare route, documented like any other."""
    add_decision_route(app, "/predict", endpoint, request_schema=request_schema, reply=reply)


def add_decision_route(
    app: FastAPI,
    path: str,
    endpoint: Callable[[Request], Coroutine[Any, Any, Response]],
    *,
    request_schema: dict[str, Any],
    reply: type[BaseModel],
    summary: str = "Decide",
) -> None:
    """Add a bare route that decides on a body, documented like any other."""
    app.router.routes.append(
        BareRoute(
            path,
            endpoint,
            methods=["POST"],
            response_model=reply,
            summary=summary,
            tags=["decisions"],
            dependencies=[Depends(api_key_header), Depends(bearer_token)],
            responses=documented(400, 401, 403, 408, 409, 413, 415, 422, 429, 503),
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": request_schema}},
                },
                "parameters": [
                    {
                        "name": "X-Request-ID",
                        "in": "header",
                        "required": False,
                        "description": "becomes the id of the decision; sent again with the same body it "
                        "returns the recorded decision, with another body it is a conflict",
                        "schema": {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"},
                    },
                    {
                        "name": "Idempotency-Key",
                        "in": "header",
                        "required": False,
                        "description": "the same as X-Request-ID, and counts before it; may stand in quotes",
                        "schema": {
                            "type": "string",
                            "pattern": f'^("{REQUEST_ID.pattern}"|{REQUEST_ID.pattern})$',
                        },
                    },
                ],
            },
        )
    )


def add_shared_routes(app: FastAPI, scope: str, explanation: type[BaseModel] = schemas.Explanation) -> None:
    """Add the routes on recorded decisions, the model, health and metrics; `scope` begins a key's scopes."""
    read, model_read = Depends(require(f"{scope}:read")), Depends(require("model:read"))

    async def list_decisions(limit: Limit = 50, before: Before = None) -> Response:
        """Return the newest recorded decisions in short; one is listed a moment after its reply."""
        rows = await app.state.runtime.log.recent(read_cursor(before), limit + 1)
        return json_response(page_of(rows, limit))

    async def get_decision(request_id: RequestId) -> Response:
        """Return a decision as it was recorded."""
        return json_response(await app.state.runtime.decisions.find(request_id))

    async def explain_decision(request_id: RequestId) -> Response:
        """Replay a decision from its record, and say what moved its score."""
        return json_response(await app.state.runtime.decisions.explain(request_id))

    async def get_model() -> Response:
        """Return what is in service: bundle, thresholds, training, policy."""
        return json_response(_model_document(app.state.runtime))

    async def livez() -> Response:
        """Say that the process answers."""
        return json_response({"alive": True})

    async def readyz() -> Response:
        """Say whether decisions can be given: 503 until model and online store answer."""
        document = await _readiness(app.state.runtime)
        return json_response(document, 200 if document["ready"] else 503)

    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        shared: WorkerMetrics | None = app.state.worker_metrics
        text = shared.text() if shared else generate_latest(app.state.runtime.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    add = app.add_api_route
    add("/decisions", list_decisions, response_model=DecisionPage, tags=["decisions"],
        dependencies=[read], responses=documented(401, 403, 422, 429, 503))  # fmt: skip
    add("/decisions/{request_id}", get_decision, response_model=schemas.DecisionDocument, tags=["decisions"],
        dependencies=[read], responses=documented(401, 403, 404, 422, 429, 503))  # fmt: skip
    add("/decisions/{request_id}/explain", explain_decision, methods=["POST"], tags=["decisions"],
        response_model=explanation, dependencies=[read],
        responses=documented(401, 403, 404, 409, 422, 429, 503))  # fmt: skip
    add("/model", get_model, response_model=schemas.ModelDocument, tags=["model"], dependencies=[model_read],
        responses=documented(401, 403, 429, 503))  # fmt: skip
    add("/livez", livez, tags=["operation"])
    add("/readyz", readyz, response_model=schemas.Readiness, tags=["operation"],
        responses={503: {"model": schemas.Readiness, "description": "Not ready"}})  # fmt: skip
    add("/metrics", metrics, tags=["operation"], response_class=PlainTextResponse)


def _model_reference(model: ServedModel) -> dict[str, Any]:
    manifest = model.bundle.manifest
    return {"name": manifest.model_name, "version": model.version, "bundle_sha256": model.bundle.sha256}


def _policy_reference(runtime: Runtime) -> dict[str, Any]:
    policy = runtime.policy
    return {"name": policy.name, "version": policy.version, "sha256": policy.sha256}


def _model_document(runtime: Runtime) -> dict[str, Any]:
    model = runtime.decisions.model
    if model is None:
        raise ModelUnavailable("no release bundle is loaded yet")
    manifest = model.bundle.manifest
    return {
        "service": runtime.settings.service_name,
        "service_version": runtime.version,
        "model": _model_reference(model),
        "model_kind": manifest.model_kind,
        "feature_service": manifest.feature_service,
        "features": model.bundle.contract.feature_names,
        "thresholds": model.bundle.thresholds,
        "label_policy_version": manifest.label_policy_version,
        "training": manifest.training,
        "git_commit": manifest.git_commit,
        "data_version": manifest.data_version,
        "policy": _policy_reference(runtime),
        "loaded_at": rfc3339(model.loaded_at),
        "rollout": None if runtime.rollout is None else runtime.rollout.document(),
    }


async def _readiness(runtime: Runtime) -> dict[str, Any]:
    checks = await runtime.checks()
    model = runtime.decisions.model
    return {
        "ready": all(checks.values()),
        "checks": checks,
        "service": runtime.settings.service_name,
        "service_version": runtime.version,
        "model": None if model is None else _model_reference(model),
        "policy": _policy_reference(runtime),
    }


def _document_problems(app: FastAPI) -> None:
    """Put the schema of problem documents into the components of the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        components = document.setdefault("components", {}).setdefault("schemas", {})
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(schema.pop("$defs", {}))
        components["Problem"] = schema
        hoist_definitions(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
