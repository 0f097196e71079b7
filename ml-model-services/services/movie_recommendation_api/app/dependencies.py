"""What the endpoints need of a request: an authorized caller and a checked body."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request

from app.schemas import ListRequest
from common_service_libs.service_app import authorized_body

SCOPE = "recommendation"
L = TypeVar("L", bound=ListRequest)


async def authorized_request(request: Request, model: type[L]) -> L:
    """Return the body as `model`; raises an AccessError or a RequestError."""
    return await authorized_body(request, f"{SCOPE}:predict", model)
