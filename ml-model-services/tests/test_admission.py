from __future__ import annotations

import asyncio

import pytest

from common_service_libs.resilience.admission import Admission, Refusal

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """An admission under a clock that is moved by hand."""

    def __init__(self, *, concurrent: int = 2, queued: int = 3, deadline: float = 1.0) -> None:
        self.clock = Clock()
        self.refused: list[Refusal] = []
        self.admission = Admission(
            concurrent=concurrent, queued=queued, deadline=deadline, clock=self.clock,
            on_refusal=self.refused.append,
        )  # fmt: skip

    async def arrive(self, count: int = 1) -> list[asyncio.Task[bool]]:
        tasks = [asyncio.create_task(self.admission.enter()) for _ in range(count)]
        await asyncio.sleep(0)
        return tasks


async def test_so_many_are_let_in_so_many_wait_and_the_rest_is_refused_at_once() -> None:
    gate = Gate()
    tasks = await gate.arrive(7)
    assert [task.done() and task.result() for task in tasks] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]
    assert [task.done() for task in tasks] == [True, True, False, False, False, True, True]
    assert gate.refused == [Refusal.QUEUE_FULL] * 2
    assert (gate.admission.running, gate.admission.waiting) == (2, 3)
    for served in range(5):
        gate.admission.leave()
        await asyncio.sleep(0)
        assert sum(task.done() and task.result() for task in tasks) == min(3 + served, 5)
    assert (gate.admission.running, gate.admission.waiting) == (0, 0)


async def test_who_waited_past_the_deadline_is_refused_when_the_turn_comes() -> None:
    gate = Gate(concurrent=1)
    await gate.arrive()
    [late] = await gate.arrive()
    gate.clock.now += 0.5
    [in_time] = await gate.arrive()
    gate.clock.now += 0.6
    gate.admission.leave()
    assert await late is False
    assert await in_time is True
    assert gate.refused == [Refusal.DEADLINE]


async def test_who_would_miss_the_deadline_is_refused_on_arrival() -> None:
    """One at a time, 50 ms each: after 0.3 s the queue has stood, and nobody is let to wait long."""
    gate = Gate(concurrent=1, queued=1000)
    await gate.arrive(20)
    for _ in range(6):
        gate.clock.now += 0.05
        gate.admission.leave()
    before = gate.admission.waiting
    [hopeless] = await gate.arrive()
    assert await hopeless is False
    assert gate.refused == [Refusal.DEADLINE]
    assert gate.admission.waiting == before
    for _ in range(before):
        gate.clock.now += 0.001
        gate.admission.leave()
    [welcome] = await gate.arrive()
    assert not welcome.done(), "the queue is empty again, so there is time to wait"
    gate.admission.leave()
    assert await welcome is True


async def test_a_client_that_gives_up_makes_way_and_no_room_is_lost() -> None:
    gate = Gate(concurrent=1)
    await gate.arrive()
    gone, stays = await gate.arrive(2)
    gone.cancel()
    await asyncio.sleep(0)
    gate.admission.leave()
    assert await stays is True
    [just_then] = await gate.arrive()
    gate.admission.leave()  # its turn comes, and in the same moment
    just_then.cancel()
    with pytest.raises(asyncio.CancelledError):
        await just_then
    assert (gate.admission.running, gate.admission.waiting) == (0, 0)
    assert all(task.result() for task in await gate.arrive())


async def test_those_that_were_announced_count_as_if_they_were_in() -> None:
    gate = Gate(concurrent=2, queued=1)
    for _ in range(3):
        assert not gate.admission.refuse()
        gate.admission.expect()
    assert gate.admission.saturated
    assert gate.admission.refuse()
    tasks = [asyncio.create_task(gate.admission.enter(expected=True)) for _ in range(3)]
    await asyncio.sleep(0)
    assert (gate.admission.running, gate.admission.waiting) == (2, 1)
    gate.admission.leave()
    assert await tasks[2] is True
