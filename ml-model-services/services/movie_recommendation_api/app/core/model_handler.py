"""The way of one request through history, model and policy, on what the shared libraries keep running."""

from __future__ import annotations

import time

from app.business_logic.recommendation_processing import to_case
from app.schemas import ListRequest
from common_service_libs.decision_record import DecisionRecord
from common_service_libs.runtime import Runtime


class ModelHandler:
    """Recommends with whatever release bundle is in service."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def recommend(
        self, request: ListRequest, request_id: str, *, id_sent: bool, started: float
    ) -> DecisionRecord:
        """Recommend movies; `started` is the `perf_counter` of the request's arrival."""
        case = to_case(request, time.time())
        return await self._runtime.decisions.decide(case, request_id, id_sent=id_sent, started=started)
