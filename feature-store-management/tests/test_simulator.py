"""The simulator: published totals, determinism, calendar shift, and equality with a naive oracle."""

import random
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_transformation_pipelines.python_scripts_feast.handbook_simulator import (
    SECONDS_A_DAY,
    SimulationParameters,
    Transactions,
    add_frauds,
    draw_transactions,
    sample_without_replacement,
    simulate,
)

SMALL = SimulationParameters(customers=400, terminals=800, days=45)


@pytest.fixture(scope="module")
def full() -> Transactions:
    return simulate(SimulationParameters())


def as_frame(transactions: Transactions) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "seconds": transactions.seconds,
            "customer": transactions.customer_id,
            "terminal": transactions.terminal_id,
            "amount": transactions.amount,
            "scenario": transactions.scenario,
        }
    )


def oracle(parameters: SimulationParameters) -> pd.DataFrame:
    """The description read literally: global seeds, one draw at a time, one frame scan a scenario and day."""
    np.random.seed(0)
    customers = [
        [np.random.uniform(*bounds) for bounds in ((0, 100), (0, 100), (5, 100), (0, 4))]
        for _ in range(parameters.customers)
    ]
    np.random.seed(1)
    terminals = [(np.random.uniform(0, 100), np.random.uniform(0, 100)) for _ in range(parameters.terminals)]
    rows = []
    for customer, (x, y, mean, rate) in enumerate(customers):
        near = [t for t, (tx, ty) in enumerate(terminals) if ((tx - x) ** 2 + (ty - y) ** 2) ** 0.5 < 5]
        random.seed(customer)
        np.random.seed(customer)
        for day in range(parameters.days):
            for _ in range(np.random.poisson(rate)):
                time = int(np.random.normal(43200, 20000))
                if not 0 < time < 86400:
                    continue
                amount = np.random.normal(mean, mean / 2)
                if amount < 0:
                    amount = np.random.uniform(0, 2 * mean)
                if near:
                    second = day * 86400 + time
                    rows.append((second, customer, random.choice(near), np.round(amount, 2)))
    frame = pd.DataFrame(rows, columns=["seconds", "customer", "terminal", "amount"])
    frame = frame.sort_values("seconds", kind="stable", ignore_index=True)
    frame["scenario"] = 0
    day_of = frame["seconds"] // 86400
    frame.loc[frame["amount"] > 220, "scenario"] = 1
    for day in range(parameters.days - 1):
        bad = pd.Series(range(parameters.terminals)).sample(n=min(2, parameters.terminals), random_state=day)
        hit = frame["terminal"].isin(bad) & (day_of >= day) & (day_of < day + 28)
        frame.loc[hit, "scenario"] = 2
    for day in range(parameters.days - 1):
        bad = pd.Series(range(parameters.customers)).sample(n=min(3, parameters.customers), random_state=day)
        hit = frame["customer"].isin(bad) & (day_of >= day) & (day_of < day + 14)
        candidates = list(frame.index[hit])
        random.seed(day)
        chosen = random.sample(candidates, k=int(len(candidates) / 3))
        frame.loc[chosen, "amount"] = (frame.loc[chosen, "amount"] * 5).round(2)
        frame.loc[chosen, "scenario"] = 3
    return frame


def test_the_default_set_has_the_published_totals(full: Transactions) -> None:
    assert len(full) == 1_754_155
    assert int((full.scenario > 0).sum()) == 14_681
    assert full.frauds_by_scenario() == {1: 973, 2: 9_077, 3: 4_631}


def test_the_default_set_has_the_published_weeks(full: Transactions) -> None:
    day = full.seconds // SECONDS_A_DAY
    train = (day >= 115) & (day < 122)  # 2018-07-25 ... 2018-07-31
    assert (int(train.sum()), int((full.scenario[train] > 0).sum())) == (67_240, 598)


def test_amounts_are_cents_and_times_fall_inside_the_calendar(full: Transactions) -> None:
    assert np.array_equal(np.round(full.amount, 2), full.amount)
    assert full.amount.min() >= 0
    assert full.seconds.min() > 0
    assert full.seconds.max() < 183 * SECONDS_A_DAY
    assert np.all(np.diff(full.seconds) >= 0)


@pytest.mark.parametrize(
    "parameters",
    [
        SMALL,
        SimulationParameters(customers=40, terminals=300, days=1),
        SimulationParameters(customers=2, terminals=2_000, days=30),
        SimulationParameters(customers=900, terminals=1, days=10),
    ],
    ids=["small", "one day", "fewer customers than are stolen a day", "fewer terminals than fall a day"],
)
def test_a_set_equals_the_naive_oracle(parameters: SimulationParameters) -> None:
    expected = oracle(parameters)
    assert len(expected) > 0
    pd.testing.assert_frame_equal(
        as_frame(simulate(parameters)), expected, check_dtype=False, check_exact=True
    )


def test_the_oracle_comparison_sees_every_scenario() -> None:
    assert min(simulate(SMALL).frauds_by_scenario().values()) > 0


def test_the_same_parameters_give_the_same_set_whatever_the_global_streams_hold() -> None:
    first = as_frame(simulate(SMALL))
    random.seed(99)
    np.random.seed(99)
    before = random.getstate()
    pd.testing.assert_frame_equal(as_frame(simulate(SMALL)), first, check_exact=True)
    assert random.getstate() == before


def test_more_days_keep_the_first_days_as_drawn() -> None:
    longer = as_frame(draw_transactions(SimulationParameters(customers=400, terminals=800, days=60)))
    head = longer[longer["seconds"] < SMALL.days * SECONDS_A_DAY]
    pd.testing.assert_frame_equal(head, as_frame(draw_transactions(SMALL)), check_exact=True)


def test_a_customer_without_terminals_in_reach_makes_no_transactions() -> None:
    assert len(simulate(SimulationParameters(customers=1, terminals=1, days=10))) == 0


def test_progress_counts_every_customer() -> None:
    calls: list[None] = []
    draw_transactions(SMALL, progress=lambda: calls.append(None))
    assert len(calls) == SMALL.customers


@settings(max_examples=25, deadline=None)
@given(
    customers=st.integers(1, 40),
    terminals=st.integers(1, 400),
    days=st.integers(1, 35),
    shift=st.integers(-900, 900),
)
def test_invariants_hold_at_every_size(customers: int, terminals: int, days: int, shift: int) -> None:
    start = date(2018, 4, 1) + timedelta(days=shift)
    parameters = SimulationParameters(customers, terminals, days, start)
    drawn = draw_transactions(parameters)
    final = add_frauds(drawn, parameters)
    for column in ("seconds", "customer_id", "terminal_id"):
        assert np.array_equal(getattr(final, column), getattr(drawn, column))
    assert set(np.unique(final.scenario)) <= {0, 1, 2, 3}
    changed = final.amount != drawn.amount
    assert np.all(final.scenario[changed] == 3)
    assert np.all(final.scenario[(drawn.amount > 220)] > 0)
    if days == 1:
        assert np.array_equal(final.scenario > 0, drawn.amount > 220)


@given(population=st.integers(1, 5_000), size=st.integers(1, 5), day=st.integers(0, 400))
def test_sampling_is_the_one_of_pandas(population: int, size: int, day: int) -> None:
    expected = pd.Series(range(population)).sample(n=min(size, population), random_state=day).tolist()
    assert sample_without_replacement(population, size, day) == expected


def test_an_end_date_is_the_last_simulated_day() -> None:
    parameters = SimulationParameters.ending(date(2026, 11, 21), customers=5, terminals=5, days=183)
    assert parameters.start_date == date(2026, 5, 23)
    assert parameters.end_date == date(2026, 11, 21)


@pytest.mark.parametrize(
    ("customers", "terminals", "days", "start", "message"),
    [
        (0, 1, 1, date(2018, 4, 1), "customers must lie between"),
        (1, -1, 1, date(2018, 4, 1), "terminals must lie between"),
        (1, 1, 2**32, date(2018, 4, 1), "days must lie between"),
        (1, 1, 3, date(9999, 12, 30), "end after 9999-12-31"),
    ],
)
def test_impossible_parameters_are_refused(
    customers: int, terminals: int, days: int, start: date, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SimulationParameters(customers, terminals, days, start)
