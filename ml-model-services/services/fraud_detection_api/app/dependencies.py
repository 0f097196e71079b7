"""What the endpoints need of a request: an authorized caller and a checked body."""

from __future__ import annotations

from fastapi import Request

from app.schemas import FraudRequest
from common_service_libs.service_app import authorized_body

SCOPE = "fraud"


async def authorized_transaction(request: Request) -> FraudRequest:
    """Return the transaction in the body; raises an AccessError or a RequestError."""
    return await authorized_body(request, f"{SCOPE}:predict", FraudRequest)
