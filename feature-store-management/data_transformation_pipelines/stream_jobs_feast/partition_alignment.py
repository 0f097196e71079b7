"""The order in which events of several partitions are taken: that of their arrival, however much is to read.

A consumer that catches up gets one partition's messages for hours before the next one's. Forwarded in that
order, they would reach the terminals' partitions days apart, and count as late there. Pure but for the clock
it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

# A partition whose leader is away; under load a broker may well leave one out for seconds.
STARVED_SECONDS = 60.0


@dataclass
class _Queue:
    waiting: list[tuple[int, Any]] = field(default_factory=list)
    newest: int = -1
    lag: int | None = None
    heard_of: float = 0.0


class Alignment:
    """Messages of the source's partitions that wait for those which arrived before them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._queues: dict[int, _Queue] = {}

    def reset(self, partitions: Iterable[int]) -> None:
        """Begin anew with these partitions; nothing waits."""
        now = self._clock()
        self._queues = {partition: _Queue(heard_of=now) for partition in partitions}

    def put(self, partition: int, records: Iterable[Any], lag: int | None) -> None:
        """Add a partition's next messages; `lag` is how many more its log holds (None: not known yet)."""
        queue = self._queues[partition]
        if lag != queue.lag:
            queue.lag, queue.heard_of = lag, self._clock()
        for record in records:
            queue.newest = max(queue.newest, record.timestamp)
            queue.waiting.append((queue.newest, record))

    def waiting(self, partition: int) -> int:
        """Return how many messages of a partition wait."""
        return len(self._queues[partition].waiting)

    def __len__(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def take(self) -> list[Any]:
        """Return the messages that no message still to be read can have arrived before, in order of arrival.

        A partition whose log holds more, but gives nothing for a minute, is not waited for.
        """
        if not len(self):
            return []
        now = self._clock()
        bound: int | None = None
        for queue in self._queues.values():
            if queue.lag == 0 or (not queue.waiting and now - queue.heard_of > STARVED_SECONDS):
                continue
            bound = queue.newest if bound is None else min(bound, queue.newest)
        taken: list[tuple[int, Any]] = []
        for queue in self._queues.values():
            if bound is None or (queue.waiting and queue.waiting[-1][0] <= bound):
                taken += queue.waiting
                queue.waiting = []
            else:
                upto = next(
                    (n for n, (when, _) in enumerate(queue.waiting) if when > bound), len(queue.waiting)
                )
                taken += queue.waiting[:upto]
                del queue.waiting[:upto]
        taken.sort(key=lambda item: item[0])
        return [record for _, record in taken]


class Silence:
    """Notices a partition whose log holds more, but which gives nothing for too long.

    A client may lose sight of one partition; a new client finds it again.
    """

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self._heard_of: dict[Any, float] = {}

    def heard(self, partition: Any) -> None:
        """Note that a partition gave something, or has nothing to give."""
        self._heard_of[partition] = self._clock()

    def too_long(self, partition: Any) -> bool:
        """Return whether a partition that has more has given nothing for too long."""
        return self._clock() - self._heard_of.setdefault(partition, self._clock()) > self._seconds
