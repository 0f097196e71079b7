"""A circuit breaker: what failed is not asked again, but for one probe at a time and at most one a second."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import StrEnum

PROBE_SECONDS = 1.0
JITTER = 0.25


class State(StrEnum):
    """Whether calls pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # one probe is under way


STATE_CODES = {State.CLOSED: 0, State.OPEN: 1, State.HALF_OPEN: 2}
"""The states as a metric."""


class CircuitBreaker:
    """Closed until `failures` calls in a row fail; then open, and half-open while a probe is under way.

    Probes begin at least `probe_seconds` apart, also those of two outages that follow each other, and up to a
    quarter later by chance, so that the processes of a fleet don't come back at the same moment. The first
    probe of an outage comes after `first_probe_seconds` at most, where the last one is long enough ago. A
    probe of which nothing is heard makes way for the next one. Not thread-safe.
    """

    def __init__(
        self,
        *,
        failures: int = 1,
        probe_seconds: float = PROBE_SECONDS,
        first_probe_seconds: float = PROBE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        on_state: Callable[[State], None] = lambda state: None,
    ) -> None:
        self._failures = failures
        self._probe_seconds = probe_seconds
        self._first_probe_seconds = first_probe_seconds
        self._clock = clock
        self._chance = chance
        self._on_state = on_state
        self._state = State.CLOSED
        self._in_a_row = 0
        self._probed = -probe_seconds * 2
        self._due = 0.0

    @property
    def state(self) -> State:
        """Whether calls pass now."""
        return self._state

    @property
    def probe_in(self) -> float:
        """The seconds until a call may pass; 0 while the breaker is closed."""
        return 0.0 if self._state is State.CLOSED else max(0.0, self._due - self._clock())

    def allow(self) -> bool:
        """Return whether a call may be made; if so, `succeeded` or `failed` must be told its outcome."""
        if self._state is State.CLOSED:
            return True
        now = self._clock()
        if now < self._due:
            return False
        self._probed = now
        self._due = self._next(now)
        self._to(State.HALF_OPEN)
        return True

    def succeeded(self) -> None:
        """Note that a call was answered."""
        self._in_a_row = 0
        if self._state is not State.CLOSED:
            self._to(State.CLOSED)

    def failed(self) -> None:
        """Note that a call was not answered."""
        self._in_a_row += 1
        if self._state is State.HALF_OPEN:
            self._to(State.OPEN)  # the next probe has been due since this one began
        elif self._state is State.CLOSED and self._in_a_row >= self._failures:
            now = self._clock()
            self._due = max(now + self._first_probe_seconds * self._chance(), self._next(self._probed))
            self._to(State.OPEN)

    def _next(self, probed: float) -> float:
        return probed + self._probe_seconds * (1 + JITTER * self._chance())

    def _to(self, state: State) -> None:
        if state is not self._state:
            self._state = state
            self._on_state(state)
