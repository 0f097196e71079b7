"""The stream's pure core against naive oracles: any order, duplicates, restarts anywhere, late events."""

from collections import defaultdict
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_transformation_pipelines.stream_jobs_feast.aggregation_contract import load_definition
from data_transformation_pipelines.stream_jobs_feast.offline_rows import Position
from data_transformation_pipelines.stream_jobs_feast.running_totals import (
    DAY_US,
    Limits,
    PartitionTotals,
    TotalsRow,
    field_columns,
    whole_cents,
)
from data_transformation_pipelines.stream_jobs_feast.transaction_events import (
    RefusedMessageError,
    Transaction,
)

DEFINITION = load_definition()
CUSTOMERS, TERMINALS = DEFINITION.views
LIMITS = Limits(late_days=1, ahead_us=1_000)
FIRST_DAY = 20_000

Arrival = tuple[Transaction, int, int]


def totals(view: Any = CUSTOMERS, limits: Limits = LIMITS) -> PartitionTotals:
    return PartitionTotals(view, DEFINITION.window, limits)


def event(number: int, customer: int = 1, amount: float = 1.0, terminal: int = 7) -> Transaction:
    return Transaction(number, "any", customer, terminal, amount)


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    """A log: events of four days and three customers, some twice, in any order, arriving as time goes on."""
    ids = draw(st.lists(st.integers(0, 25), max_size=40))
    log, clock = [], (FIRST_DAY + 4) * DAY_US
    times = {
        number: (FIRST_DAY + draw(st.integers(0, 3))) * DAY_US + draw(st.integers(0, 5)) * 1_000
        for number in set(ids)
    }
    for number in ids:
        clock += draw(st.integers(0, 2)) * 1_000
        log.append((event(number, number % 3, number * 0.37), times[number], clock))
    return log


def run(log: list[Arrival], state: PartitionTotals, start: int = 0) -> list[TotalsRow | str | None]:
    """Return what came of each event: its row, None for a duplicate, or the reason of its refusal."""
    found: list[TotalsRow | str | None] = []
    for offset, (each, time_us, known_us) in enumerate(log[start:], start):
        try:
            found.append(state.add(each, time_us, known_us, offset))
        except RefusedMessageError as error:
            found.append(error.reason)
    return found


def naive(log: list[Arrival], limits: Limits) -> list[TotalsRow | str | None]:
    """Compute each outcome from the whole list of the events that counted before it."""
    counted: list[Arrival] = []
    outcomes: list[TotalsRow | str | None] = []
    for each, time_us, known_us in log:
        day = time_us // DAY_US
        newest = max([day, *(when // DAY_US for _, when, _ in counted)])
        if day < newest - limits.late_days:
            outcomes.append("too_late")
        elif any(other.transaction_id == each.transaction_id for other, _, _ in counted):
            outcomes.append(None)
        else:
            counted.append((each, time_us, known_us))
            own = [item for item in counted if item[0].customer_id == each.customer_id]
            same = [item for item in own if item[1] // DAY_US == day]
            moment = max(when for _, when, _ in same) + 1
            outcomes.append(
                TotalsRow(
                    each.customer_id,
                    moment,
                    max(moment, max(known for _, _, known in same) + 1),
                    day,
                    len(same),
                    (sum(whole_cents(item[0].tx_amount) for item in same),),
                    day == max(when // DAY_US for _, when, _ in own),
                )
            )
    return outcomes


@settings(max_examples=60, deadline=None)
@given(arrivals())
def test_rows_equal_the_naive_oracle(log: list[Arrival]):
    assert run(log, totals()) == naive(log, LIMITS)


@settings(max_examples=60, deadline=None)
@given(arrivals(), st.data())
def test_a_restart_anywhere_changes_nothing(log: list[Arrival], data: st.DataObject):
    whole = totals()
    expected = run(log, whole)
    stop = data.draw(st.integers(0, len(log)))
    before = totals()
    run(log[:stop], before)
    position = Position(stop, before.first_offsets)
    rebuilt = totals()
    run(log[:stop], rebuilt, position.rebuild_from)
    assert sorted(rebuilt.newest_rows()) == sorted(before.newest_rows())
    assert rebuilt.first_offsets == before.first_offsets
    assert run(log, rebuilt, stop) == expected[stop:]
    assert sorted(rebuilt.newest_rows()) == sorted(whole.newest_rows())


@settings(max_examples=40, deadline=None)
@given(arrivals(), st.randoms(use_true_random=False))
def test_in_the_end_neither_order_nor_duplicates_show(log: list[Arrival], random: Any):
    patient = Limits(late_days=10, ahead_us=10**15)
    shuffled = log + log[::2]
    random.shuffle(shuffled)
    one, other = totals(limits=patient), totals(limits=patient)
    run(log, one)
    run(shuffled, other)
    online = [sorted(row._replace(created_us=0) for row in each.newest_rows()) for each in (one, other)]
    assert online[0] == online[1]


@settings(max_examples=60, deadline=None)
@given(arrivals())
def test_the_last_online_row_is_the_newest_day(log: list[Arrival]):
    """What the rows wrote online, one after the other and newest first, is what a rebuild would write."""
    state, online = totals(), {}
    for row in run(log, state):
        if isinstance(row, TotalsRow) and row.online:
            assert row.entity not in online or row.event_us >= online[row.entity].event_us
            online[row.entity] = row
    for row in state.newest_rows():
        assert online[row.entity] == row


def test_a_late_event_counts_for_its_own_day_and_not_online():
    state = totals()
    yesterday, today = FIRST_DAY * DAY_US, (FIRST_DAY + 1) * DAY_US
    first = state.add(event(1, amount=10.0), yesterday + 5, today + 100, 0)
    second = state.add(event(2, amount=2.0), today + 10, today + 200, 1)
    late = state.add(event(3, amount=0.5), yesterday + 9, today + 300, 2)
    third = state.add(event(4, amount=4.0), today + 8, today + 400, 3)
    assert first == TotalsRow(1, yesterday + 6, today + 101, FIRST_DAY, 1, (1_000,), True)
    assert second == TotalsRow(1, today + 11, today + 201, FIRST_DAY + 1, 1, (200,), True)
    assert late == TotalsRow(1, yesterday + 10, today + 301, FIRST_DAY, 2, (1_050,), False)
    assert third == TotalsRow(1, today + 11, today + 401, FIRST_DAY + 1, 2, (600,), True)


def test_an_event_of_another_entity_does_not_end_the_day_of_this_one():
    state = totals()
    state.add(event(1, customer=1), (FIRST_DAY + 1) * DAY_US, (FIRST_DAY + 2) * DAY_US, 0)
    row = state.add(event(2, customer=2), FIRST_DAY * DAY_US, (FIRST_DAY + 2) * DAY_US, 1)
    assert row is not None
    assert row.online


@pytest.mark.parametrize(("ahead_us", "reason"), [(1_000, None), (1_001, "future")])
def test_an_event_may_be_a_little_ahead_of_its_arrival(ahead_us: int, reason: str | None):
    known = FIRST_DAY * DAY_US + 5_000_000
    outcome = run([(event(1), known + ahead_us, known)], totals())[0]
    assert outcome == reason if reason else isinstance(outcome, TotalsRow)


def test_a_day_that_is_no_longer_kept_is_refused_and_forgotten():
    state, known = totals(), (FIRST_DAY + 9) * DAY_US
    run([(event(n, n), (FIRST_DAY + n) * DAY_US, known) for n in range(4)], state)
    assert state.first_offsets == {FIRST_DAY + 2: 2, FIRST_DAY + 3: 3}
    assert {row.entity for row in state.newest_rows()} == {2, 3}
    assert run([(event(9), (FIRST_DAY + 1) * DAY_US, known)], state) == ["too_late"]


@pytest.mark.parametrize(
    ("amount", "cents"),
    [(0.005, 0), (0.015, 2), (0.025, 2), (1.005, 100), (19.99, 1_999), (1_000_000.0, 10**8)],
)
def test_a_half_cent_goes_to_the_even_one(amount: float, cents: int):
    assert whole_cents(amount) == cents


@given(st.floats(0, 1_000_000))
def test_whole_cents_round_the_product_half_to_even(amount: float):
    product = Fraction(amount * 100)
    below, rest = divmod(product, 1)
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2)
    assert whole_cents(amount) == below + bool(up)


def test_columns_are_those_of_the_definition():
    rows = [TotalsRow(5, 1, 2, FIRST_DAY, 3, (1_005,), True), TotalsRow(6, 1, 2, FIRST_DAY, 1, (1,), True)]
    columns = {name: values.tolist() for name, values in field_columns(CUSTOMERS, rows).items()}
    assert columns == {
        "customer_tx_count_today": [3, 1],
        "customer_tx_amount_sum_today": [10.05, 0.01],
        "customer_today_day": [FIRST_DAY, FIRST_DAY],
    }
    by_terminal = totals(TERMINALS).add(event(1, terminal=44), FIRST_DAY * DAY_US, FIRST_DAY * DAY_US, 0)
    assert by_terminal is not None
    assert (by_terminal.entity, by_terminal.cents) == (44, ())


def test_the_day_follows_the_windows_clock():
    window = DEFINITION.window.model_copy(update={"utc_offset_hours": 2})
    state = PartitionTotals(CUSTOMERS, window, LIMITS)
    days = defaultdict(list)
    for number, hour in enumerate((21, 22)):
        moment = FIRST_DAY * DAY_US + hour * 3_600_000_000
        row = state.add(event(number), moment, moment, number)
        assert row is not None
        days[row.day].append(hour)
    assert days == {FIRST_DAY: [21], FIRST_DAY + 1: [22]}
