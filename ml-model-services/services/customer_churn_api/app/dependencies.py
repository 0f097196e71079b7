"""What the endpoints need of a request: an authorized caller and a checked body."""

from __future__ import annotations

from fastapi import Request

from app.schemas import ChurnRequest
from common_service_libs.service_app import authorized_body

SCOPE = "churn"


async def authorized_subscriber(request: Request) -> ChurnRequest:
    """Return the subscriber in the body; raises an AccessError or a RequestError."""
    return await authorized_body(request, f"{SCOPE}:predict", ChurnRequest)
