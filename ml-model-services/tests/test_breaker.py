from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from common_service_libs.resilience.breaker import CircuitBreaker, State


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker_of(clock: Clock, **options: object) -> CircuitBreaker:
    return CircuitBreaker(clock=clock, chance=lambda: 0.0, **options)  # type: ignore[arg-type]


def test_a_breaker_opens_after_so_many_failures_in_a_row() -> None:
    clock = Clock()
    breaker = breaker_of(clock, failures=3)
    for outcome in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed, breaker.failed):
        assert breaker.allow()
        outcome()
    assert breaker.state is State.CLOSED
    breaker.failed()
    clock.now += 0.001  # chance puts the first probe at once; it is taken by the next call
    assert breaker.state is State.OPEN


def test_while_open_one_probe_a_second_passes_and_its_success_closes() -> None:
    clock, states = Clock(), []
    breaker = breaker_of(clock, on_state=states.append)
    breaker.failed()
    passed = 0
    for _ in range(500):  # five seconds of calls, one every 10 ms, each of which fails
        if breaker.allow():
            passed += 1
            breaker.failed()
        clock.now += 0.01
    assert passed == 5
    clock.now += 1.0
    assert breaker.allow()
    assert breaker.state is State.HALF_OPEN
    assert not breaker.allow(), "the others still don't pass"
    breaker.succeeded()
    assert breaker.state is State.CLOSED
    assert breaker.probe_in == 0
    assert states[:2] == [State.OPEN, State.HALF_OPEN]
    assert states[-1] is State.CLOSED


def test_a_probe_of_which_nothing_is_heard_makes_way_for_the_next() -> None:
    clock = Clock()
    breaker = breaker_of(clock)
    breaker.failed()
    assert breaker.allow()
    assert not breaker.allow()
    clock.now += 1.0
    assert breaker.allow()


@given(st.lists(st.tuples(st.floats(0, 0.4), st.booleans(), st.floats(0, 0.999)), max_size=200))
def test_probes_begin_at_least_a_second_apart_whatever_happens(
    steps: list[tuple[float, bool, float]],
) -> None:
    clock, chance = Clock(), [0.0]
    breaker = CircuitBreaker(clock=clock, chance=lambda: chance[0], first_probe_seconds=0.05)
    probes = []
    for pause, answered, luck in steps:
        clock.now += pause
        chance[0] = luck
        probing = breaker.state is not State.CLOSED
        if breaker.allow():
            if probing:
                probes.append(clock.now)
            (breaker.succeeded if answered else breaker.failed)()
        else:
            assert 0 < breaker.probe_in <= 1.25
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(probes))
