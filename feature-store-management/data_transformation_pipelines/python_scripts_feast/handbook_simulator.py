"""The card transaction simulator of the *Fraud Detection Handbook*, written from its published description.

Le Borgne, Siblini, Lebichot, Bontempi: Reproducible Machine Learning for Credit Card Fraud Detection (2022).
With the default parameters it reproduces the published data set: 1,754,155 transactions, 14,681 frauds, of
which 973 / 9,077 / 4,631 carry scenario 1 / 2 / 3. That hangs on the order in which the legacy streams of
NumPy and of `random` are consumed: to change the order of draws is to change the data.

Nothing here reads or writes files.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray

GENERATOR = "fraud-detection-handbook"
GENERATOR_VERSION = 1
FIRST_DAY = date(2018, 4, 1)
SECONDS_A_DAY = 86_400

CUSTOMER_SEED, TERMINAL_SEED = 0, 1
AREA_SIDE = 100.0
TERMINAL_RADIUS = 5.0
NOON, TIME_STD = 43_200.0, 20_000.0

LARGE_AMOUNT = 220.0
TERMINALS_A_DAY, TERMINAL_FRAUD_DAYS = 2, 28
CUSTOMERS_A_DAY, CUSTOMER_FRAUD_DAYS = 3, 14
STOLEN_CARD_SHARE, STOLEN_CARD_FACTOR = 3, 5.0

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SimulationParameters:
    """What determines a data set: sizes and the first simulated day (UTC)."""

    customers: int = 5_000
    terminals: int = 10_000
    days: int = 183
    start_date: date = FIRST_DAY

    def __post_init__(self) -> None:
        """Refuse sizes below one, seeds beyond 32 bits and calendars beyond year 9999 with a ValueError."""
        for name in ("customers", "terminals", "days"):
            if not 1 <= getattr(self, name) < 2**32:
                raise ValueError(f"{name} must lie between 1 and 4294967295, not {getattr(self, name)}")
        if (date.max - self.start_date).days < self.days - 1:
            raise ValueError(f"{self.days} days from {self.start_date} end after {date.max}")

    @classmethod
    def ending(cls, end_date: date, *, customers: int, terminals: int, days: int) -> SimulationParameters:
        """Return the parameters whose last simulated day is `end_date`."""
        if (end_date - date.min).days < days - 1:
            raise ValueError(f"{days} days up to {end_date} begin before {date.min}")
        return cls(customers, terminals, days, end_date - timedelta(days=days - 1))

    @property
    def end_date(self) -> date:
        """The last simulated day."""
        return self.start_date + timedelta(days=self.days - 1)

    def as_dict(self) -> dict[str, str | int]:
        """Return every parameter, dates in ISO form: what a data set's identity is computed from."""
        return {
            "generator": GENERATOR,
            "generator_version": GENERATOR_VERSION,
            "customers": self.customers,
            "terminals": self.terminals,
            "days": self.days,
            "start_date": self.start_date.isoformat(),
            "end_date": self.end_date.isoformat(),
        }


@dataclass(frozen=True)
class CustomerProfile:
    """One customer: terminals within reach, mean amount (USD) and mean number of transactions a day."""

    customer_id: int
    mean_amount: float
    mean_transactions_a_day: float
    terminals: list[int]


@dataclass(frozen=True)
class Transactions:
    """Columns of equal length, one entry a transaction, sorted by time.

    `seconds` count from the first midnight, amounts are USD to the cent. `scenario` is 0 for a good
    transaction, else the fraud scenario 1, 2 or 3.
    """

    seconds: IntArray
    customer_id: IntArray
    terminal_id: IntArray
    amount: FloatArray
    scenario: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.seconds)

    def frauds_by_scenario(self) -> dict[int, int]:
        """Return the number of transactions by final fraud scenario."""
        counts = np.bincount(self.scenario, minlength=4)
        return {scenario: int(counts[scenario]) for scenario in (1, 2, 3)}


Drawn = tuple[IntArray, IntArray, IntArray, FloatArray]


def customer_profiles(parameters: SimulationParameters) -> list[CustomerProfile]:
    """Draw all customers and find the terminals closer to each than the radius."""
    # One draw of a block consumes the stream in the order of one draw a property and customer.
    unit = np.random.RandomState(CUSTOMER_SEED).random_sample((parameters.customers, 4))
    mean_amounts = 5.0 + 95.0 * unit[:, 2]
    means_a_day = 4.0 * unit[:, 3]
    terminals = AREA_SIDE * np.random.RandomState(TERMINAL_SEED).random_sample((parameters.terminals, 2))
    profiles = []
    for customer_id, (x, y) in enumerate(AREA_SIDE * unit[:, :2]):
        distances = np.sqrt((terminals[:, 0] - x) ** 2 + (terminals[:, 1] - y) ** 2)
        within_reach = np.flatnonzero(distances < TERMINAL_RADIUS).tolist()
        profiles.append(
            CustomerProfile(
                customer_id, float(mean_amounts[customer_id]), float(means_a_day[customer_id]), within_reach
            )
        )
    return profiles


def draw_customer(profile: CustomerProfile, days: int) -> Drawn:
    """Draw one customer's transactions, day by day in order of draw: seconds, customer, terminal, amount."""
    seconds: list[int] = []
    terminal_ids: list[int] = []
    amounts: list[float] = []
    choice = random.Random(profile.customer_id).choice  # noqa: S311 (a simulation)
    stream = np.random.RandomState(profile.customer_id)
    poisson, gauss, uniform = stream.poisson, stream.standard_normal, stream.random_sample
    mean, std = profile.mean_amount, profile.mean_amount / 2
    rate, terminals = profile.mean_transactions_a_day, profile.terminals
    for midnight in range(0, days * SECONDS_A_DAY if terminals else 0, SECONDS_A_DAY):
        for _ in range(poisson(rate)):
            second = int(NOON + TIME_STD * gauss())
            if not 0 < second < SECONDS_A_DAY:
                continue
            amount = mean + std * gauss()
            if amount < 0:
                amount = 2 * mean * uniform()
            seconds.append(midnight + second)
            amounts.append(amount)
            terminal_ids.append(choice(terminals))
    return (
        np.array(seconds, dtype=np.int64),
        np.full(len(seconds), profile.customer_id, dtype=np.int64),
        np.array(terminal_ids, dtype=np.int64),
        to_cents(np.array(amounts, dtype=np.float64)),
    )


def draw_transactions(
    parameters: SimulationParameters, *, progress: Callable[[], object] = lambda: None
) -> Transactions:
    """Draw all transactions, still without fraud, sorted by time (ties in customer order).

    `progress` is called after each customer.
    """
    parts = []
    for profile in customer_profiles(parameters):
        parts.append(draw_customer(profile, parameters.days))
        progress()
    seconds, customers, terminals, amounts = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(seconds, kind="stable")
    return Transactions(
        seconds[order],
        customers[order],
        terminals[order],
        amounts[order],
        np.zeros(len(order), dtype=np.int16),
    )


def add_frauds(transactions: Transactions, parameters: SimulationParameters) -> Transactions:
    """Return the transactions with the three scenarios applied in order; a later one overwrites the label.

    1: every amount above 220. 2: each day two terminals are compromised, for 28 days. 3: each day three cards
    are stolen, and for 14 days a third of their transactions, with five times the amount, are the thief's.
    The last simulated day starts nothing new. A set with fewer terminals or customers gives all it has.
    """
    amount = transactions.amount.copy()
    scenario = np.where(amount > LARGE_AMOUNT, 1, 0).astype(np.int16)
    rows_of_terminal = _RowsByKey(transactions.terminal_id, transactions.seconds // SECONDS_A_DAY)
    rows_of_customer = _RowsByKey(transactions.customer_id, transactions.seconds // SECONDS_A_DAY)
    for day in range(parameters.days - 1):
        for terminal in sample_without_replacement(parameters.terminals, TERMINALS_A_DAY, day):
            scenario[rows_of_terminal.between(terminal, day, day + TERMINAL_FRAUD_DAYS)] = 2
    for day in range(parameters.days - 1):
        stolen = sample_without_replacement(parameters.customers, CUSTOMERS_A_DAY, day)
        candidates = [rows_of_customer.between(card, day, day + CUSTOMER_FRAUD_DAYS) for card in stolen]
        rows = np.sort(np.concatenate(candidates)).tolist()
        chosen = random.Random(day).sample(rows, k=len(rows) // STOLEN_CARD_SHARE)  # noqa: S311 (a simulation)
        amount[chosen] = to_cents(STOLEN_CARD_FACTOR * amount[chosen])
        scenario[chosen] = 3
    return Transactions(
        transactions.seconds, transactions.customer_id, transactions.terminal_id, amount, scenario
    )


def to_cents(amounts: FloatArray) -> FloatArray:
    """Return the amounts rounded to the cent."""
    return np.round(amounts, 2).astype(np.float64, copy=False)


def sample_without_replacement(population: int, size: int, day: int) -> list[int]:
    """Return what a pandas `sample(size, random_state=day)` of `range(population)` would; all, if too few."""
    stream = np.random.RandomState(day)
    drawn: list[int] = stream.choice(population, size=min(size, population), replace=False).tolist()
    return drawn


class _RowsByKey:
    """Finds the rows of one key (a terminal or a customer) within an interval of days."""

    def __init__(self, keys: IntArray, days: IntArray) -> None:
        self._rows = np.argsort(keys, kind="stable")
        self._keys = keys[self._rows]
        self._days = days[self._rows]

    def between(self, key: int, first_day: int, end_day: int) -> IntArray:
        """Return the ascending rows of `key` with first_day <= day < end_day."""
        start, stop = np.searchsorted(self._keys, [key, key + 1])
        first, last = np.searchsorted(self._days[start:stop], [first_day, end_day])
        return self._rows[start + first : start + last]


def simulate(
    parameters: SimulationParameters, *, progress: Callable[[], object] = lambda: None
) -> Transactions:
    """Return the complete data set of these parameters; the position of a transaction is its id."""
    return add_frauds(draw_transactions(parameters, progress=progress), parameters)
