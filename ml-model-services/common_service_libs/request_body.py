"""Reading and checking a JSON body: bounded in size, time and depth, and never coerced."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from common_service_libs.errors import (
    BodyTimeout,
    BodyTooLarge,
    FieldError,
    InvalidRequest,
    MalformedRequest,
    UnsupportedMediaType,
)
from common_service_libs.security.body_guard import guard_body

M = TypeVar("M", bound=BaseModel)
MAX_ERRORS = 20
MAX_NESTING = 8


async def read_body(request: Request, *, max_bytes: int, deadline: float) -> bytes:
    """Return the body; raises UnsupportedMediaType, BodyTooLarge or BodyTimeout.

    The declared length is checked first, the received length while it arrives.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("Content-Type must be application/json")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLarge(f"at most {max_bytes} bytes are read")
    try:
        async with asyncio.timeout(deadline):
            return await _receive(request, max_bytes)
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {deadline:g} s") from None
    except ClientDisconnect:
        raise MalformedRequest("the body ends early") from None


async def _receive(request: Request, max_bytes: int) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLarge(f"at most {max_bytes} bytes are read")
    return body


def parse_body(body: bytes, model: type[M], *, max_nesting: int = MAX_NESTING) -> M:
    """Return the body as `model`.

    Raises BodyTooDeep, DuplicateKey, MalformedRequest or InvalidRequest; but for the name of a key that
    occurs twice, none repeats what was sent.
    """
    guard_body(body, max_nesting=max_nesting)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
    if found[0]["type"] == "json_invalid":
        raise MalformedRequest(found[0]["msg"])
    wrong = [FieldError(_pointer(item["loc"]), item["msg"]) for item in found[:MAX_ERRORS]]
    raise InvalidRequest(f"{len(found)} field{'s are' if len(found) > 1 else ' is'} wrong", wrong)


def _pointer(location: tuple[int | str, ...]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)
