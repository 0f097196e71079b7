"""Look-ups of decisions behind a circuit breaker: while the database is silent nobody waits for it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from common_service_libs.decision_log import RecordStore
from common_service_libs.decision_record import DecisionRecord
from common_service_libs.decision_schema import Maintained
from common_service_libs.errors import DecisionStoreUnavailable
from common_service_libs.recent_decisions import Cursor
from common_service_libs.resilience.breaker import CircuitBreaker

T = TypeVar("T")


class GuardedStore:
    """A record store whose look-ups fail at once while its breaker is open; writes pass as they are."""

    def __init__(self, store: RecordStore, breaker: CircuitBreaker) -> None:
        self._store = store
        self._breaker = breaker

    async def find(self, request_id: str, service: str) -> DecisionRecord | None:
        """Return one record."""
        return await self._guarded(self._store.find(request_id, service))

    async def recent(self, service: str, cursor: Cursor, limit: int) -> list[dict[str, Any]]:
        """Return the newest decisions before the cursor, in short."""
        return await self._guarded(self._store.recent(service, cursor, limit))

    async def claim(
        self, request_id: str, service: str, *, owner: str, place: str
    ) -> tuple[DecisionRecord | None, bool]:
        """Return the record of an id and, without one, whether `owner` may decide now."""
        return await self._guarded(self._store.claim(request_id, service, owner=owner, place=place))

    async def release(self, request_id: str, service: str, owner: str) -> None:
        """Give a claim up."""
        await self._guarded(self._store.release(request_id, service, owner))

    async def sweep(self) -> None:
        """Take old claims away."""
        await self._store.sweep()

    async def _guarded(self, question: Coroutine[Any, Any, T]) -> T:
        if not self._breaker.allow():
            question.close()
            raise DecisionStoreUnavailable("the decision database does not answer")
        try:
            answer = await question
        except DecisionStoreUnavailable:
            self._breaker.failed()
            raise
        self._breaker.succeeded()
        return answer

    async def insert(self, records: list[bytes]) -> int:
        """Take records, and return how many of them were new."""
        return await self._store.insert(records)

    async def maintain(self) -> Maintained:
        """Prepare for the days to come, and drop what is too old."""
        return await self._store.maintain()

    async def close(self) -> None:
        """Give the connection up."""
        await self._store.close()
