"""Who is let in while more requests come than can be answered: a bounded number at a time, a bounded wait.

Work that would miss its deadline is refused as it arrives, not after it has waited: the wait is foretold from
the pace at which requests have lately been finished. While a queue has stood for longer than a moment, only a
short wait is granted, so that overload costs the requests that are refused, not the time of those that are
answered ("controlled delay").
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum

STANDING_SECONDS = 0.1
SHORT_WAIT_SECONDS = 0.03
PACE_SECONDS = 0.05
SMOOTHING = 0.3
FORGETTING = 0.9


class Refusal(StrEnum):
    """Why a request was not let in."""

    QUEUE_FULL = "queue_full"
    DEADLINE = "deadline"
    CONNECTIONS = "connections"


class Admission:
    """At most `concurrent` requests at a time and `queued` waiting, each to be answered within `deadline`.

    `on_refusal` is told of every request that is refused; `finished` counts the others. For one event loop.
    """

    def __init__(
        self,
        *,
        concurrent: int,
        queued: int,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
        on_refusal: Callable[[Refusal], None] = lambda why: None,
    ) -> None:
        self._concurrent = concurrent
        self._queued = queued
        self._deadline = deadline
        self._clock = clock
        self._on_refusal = on_refusal
        self._running = 0
        self._coming = 0
        self.finished = 0
        self._waiting: deque[tuple[asyncio.Future[bool], float]] = deque()
        self._emptied = clock()
        self._gap = 0.0  # seconds from one finished request to the next, while others wait
        self._counted = 0
        self._counting_since = clock()

    @property
    def running(self) -> int:
        """How many requests are being served."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def saturated(self) -> bool:
        """Whether a request that arrives now would have to wait, or to be refused."""
        return self._running + self._coming >= self._concurrent

    def expect(self) -> None:
        """Note that a request was not refused and is about to `enter`, which is to be told so."""
        self._coming += 1

    def refuse(self) -> bool:
        """Return whether a request that arrives now is to be turned away; it then counts as refused."""
        ahead = self._running + self._coming + len(self._waiting) - self._concurrent
        if ahead < 0:
            return False
        if ahead >= self._queued:
            self._on_refusal(Refusal.QUEUE_FULL)
            return True
        if ahead and (ahead + 1) * self._gap > self._patience():
            self._on_refusal(Refusal.DEADLINE)
            return True
        return False

    def refuse_connection(self) -> None:
        """Note that a whole connection was turned away."""
        self._on_refusal(Refusal.CONNECTIONS)

    def _patience(self) -> float:
        """Return how long a request may wait: until its deadline, but briefly where a queue has stood."""
        standing = self._waiting and self._clock() - self._emptied > STANDING_SECONDS
        return SHORT_WAIT_SECONDS if standing else self._deadline - self._gap * self._concurrent

    def enter_now(self) -> None:
        """Let in a request for which there is room: while `saturated`, others are before it."""
        self._running += 1

    async def enter(self, *, expected: bool = False) -> bool:
        """Let a request in, at once or when it is its turn; False if it is turned away.

        A request that was let in must `leave`.
        """
        if expected:
            self._coming -= 1
        if self._running < self._concurrent:
            self._running += 1
            return True
        if not expected and self.refuse():
            return False
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._begin_queue()
        self._waiting.append((turn, self._clock()))
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.leave()  # it was its turn as its client gave up
            raise

    def leave(self) -> None:
        """Note that a request is finished, and let the next one in."""
        self.finished += 1
        if not self._waiting:
            self._running -= 1
            return
        now = self._clock()
        self._pace(now)
        while self._waiting:
            turn, since = self._waiting.popleft()
            if turn.done():  # its client gave up
                continue
            if now - since > self._deadline:
                self._on_refusal(Refusal.DEADLINE)
                turn.set_result(False)
                continue
            turn.set_result(True)
            break
        else:
            self._running -= 1
        if not self._waiting:
            self._emptied = now

    def _begin_queue(self) -> None:
        self._emptied = self._counting_since = self._clock()
        self._counted = 0
        self._gap *= FORGETTING  # a pace that was measured once must not keep a queue from standing again

    def _pace(self, now: float) -> None:
        """Measure how fast requests are finished; only while others wait is that what can be done."""
        self._counted += 1
        elapsed = now - self._counting_since
        if elapsed >= PACE_SECONDS:
            measured = elapsed / self._counted
            self._gap = measured if not self._gap else self._gap + SMOOTHING * (measured - self._gap)
            self._counted, self._counting_since = 0, now
