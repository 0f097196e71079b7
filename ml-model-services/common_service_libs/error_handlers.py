"""Every error as a problem document (RFC 9457); the one place where errors meet HTTP."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from common_service_libs import errors

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:decision-service:problem:"


class ProblemType(NamedTuple):
    """What a kind of error is in HTTP."""

    status: int
    slug: str
    title: str


PROBLEMS: dict[type[errors.ServiceError], ProblemType] = {
    errors.MalformedRequest: ProblemType(400, "malformed-request", "The body is not readable as JSON"),
    errors.InvalidRequest: ProblemType(422, "invalid-request", "The request is not as the schema says"),
    errors.UnsupportedMediaType: ProblemType(415, "unsupported-media-type", "The body must be JSON"),
    errors.BodyTooLarge: ProblemType(413, "body-too-large", "The body is too large"),
    errors.BodyTimeout: ProblemType(408, "body-timeout", "The body did not arrive in time"),
    errors.BodyTooDeep: ProblemType(400, "body-too-deep", "The body is nested too deeply"),
    errors.DuplicateKey: ProblemType(400, "duplicate-key", "The body names a key twice"),
    errors.RequestIdReused: ProblemType(409, "request-id-reused", "The request id stands for another body"),
    errors.FeaturesMissing: ProblemType(422, "features-missing", "The entity cannot be scored"),
    errors.DecisionNotFound: ProblemType(404, "decision-not-found", "No such decision"),
    errors.NotExplainable: ProblemType(409, "not-explainable", "The decision was made without a score"),
    errors.Unauthenticated: ProblemType(401, "unauthenticated", "A valid key is needed"),
    errors.Forbidden: ProblemType(403, "forbidden", "The key does not allow this"),
    errors.RateLimited: ProblemType(429, "rate-limited", "Too many requests of this client"),
    errors.Overloaded: ProblemType(503, "overloaded", "More requests than can be answered in time"),
    errors.ModelUnavailable: ProblemType(503, "model-unavailable", "No model is loaded"),
    errors.FeaturesUnavailable: ProblemType(503, "features-unavailable", "The online store does not answer"),
    errors.BundleUnavailable: ProblemType(503, "bundle-unavailable", "The release bundle cannot be had"),
    errors.SpoolUnavailable: ProblemType(503, "spool-unavailable", "Decisions cannot be recorded"),
    errors.DecisionUnderWay: ProblemType(503, "decision-under-way", "The same request is being decided"),
    errors.DecisionStoreUnavailable: ProblemType(
        503, "decision-store-unavailable", "The decision database does not answer"
    ),
}
_INTERNAL = ProblemType(500, "internal-error", "An error of the service")
_HTTP = {
    404: ProblemType(404, "not-found", "No such resource"),
    405: ProblemType(405, "method-not-allowed", "The resource does not know this method"),
}


class ProblemField(BaseModel):
    """What is wrong with one field of the body."""

    pointer: str = Field(description="JSON pointer to the field", examples=["/tx_amount"])
    detail: str = Field(examples=["Input should be greater than or equal to 0"])


class Problem(BaseModel):
    """A problem document, RFC 9457."""

    type: str = Field(examples=[TYPE_PREFIX + "invalid-request"])
    title: str = Field(examples=["The request is not as the schema says"])
    status: int = Field(examples=[422])
    detail: str | None = Field(default=None, examples=["1 field is wrong"])
    request_id: str | None = Field(default=None, examples=["7f0c6c0e-6a0e-4a53-9a52-2f3d5a1a8d10"])
    errors: list[ProblemField] | None = None


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for error statuses."""
    titles: dict[int, list[str]] = {}
    for problem in PROBLEMS.values():
        titles.setdefault(problem.status, []).append(problem.title)
    return {
        status: {
            "description": "; ".join(titles[status]),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def problem_response(
    kind: ProblemType,
    request_id: str | None,
    detail: str | None = None,
    field_errors: tuple[errors.FieldError, ...] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    """Return the response of a problem."""
    document: dict[str, Any] = {"type": TYPE_PREFIX + kind.slug, "title": kind.title, "status": kind.status}
    if detail:
        document["detail"] = detail
    if request_id:
        document["request_id"] = request_id
    if field_errors:
        document["errors"] = [{"pointer": error.pointer, "detail": error.detail} for error in field_errors]
    return Response(msgspec.json.encode(document), kind.status, headers=headers, media_type=MEDIA_TYPE)


def install_error_handlers(app: FastAPI) -> None:
    """Map the tree of errors, the framework's own errors and everything unforeseen to problem documents."""
    app.add_exception_handler(errors.ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(Exception, _unforeseen)


def request_id_of(request: Request) -> str | None:
    """Return the id that the monitoring middleware gave the request."""
    found: str | None = request.scope.get("state", {}).get("request_id")
    return found


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ServiceError)
    kind = next((PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS), None)
    if kind is None:
        return await _unforeseen(request, error)
    headers = {}
    if isinstance(error, errors.Unavailable):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = error.challenge
    if isinstance(error, errors.RateLimited):
        headers |= _limit_headers(error)
    field_errors = error.errors if isinstance(error, errors.InvalidRequest) else ()
    return problem_response(kind, request_id_of(request), error.detail, field_errors, headers)


def _limit_headers(error: errors.RateLimited) -> dict[str, str]:
    """Return the fields of the IETF draft "RateLimit header fields for HTTP"; whole seconds, rounded up."""
    seconds = max(1, math.ceil(error.retry_after_seconds))
    return {
        "Retry-After": str(seconds),
        "RateLimit-Policy": f'"default";q={error.quota};w={max(1, math.ceil(error.window_seconds))}',
        "RateLimit": f'"default";r=0;t={seconds}',
    }


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _HTTP.get(error.status_code, ProblemType(error.status_code, "http-error", "The request failed"))
    return problem_response(kind, request_id_of(request), headers=dict(error.headers or {}))


async def _parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = tuple(
        errors.FieldError("/" + "/".join(str(part) for part in item["loc"]), item["msg"])
        for item in error.errors()
    )
    invalid = PROBLEMS[errors.InvalidRequest]
    return problem_response(invalid, request_id_of(request), "a parameter is wrong", found)


async def _unforeseen(request: Request, error: Exception) -> Response:
    logger.error(
        "unforeseen error",
        exc_info=error,
        extra={"request_id": request_id_of(request), "path": request.url.path},
    )
    return problem_response(_INTERNAL, request_id_of(request))
