"""Both feature definitions for all transactions at once, from the raw rows: exact windows and full days.

The Handbook's windows end at the transaction and are 1, 7 or 30 times 24 hours long; the platform's are full
UTC days and today so far. Everything is a difference of two running totals at places found by binary search,
so 1.75 million rows take seconds. Amounts are summed in cents: sums of integers are exact in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

WINDOW_DAYS = (1, 7, 30)
DELAY_DAYS = 7
DAY = 86_400_000_000  # microseconds, the unit of all times here

PUBLISHED_FEATURES = (
    "tx_amount",
    "tx_is_weekend",
    "tx_is_night",
    *(f"customer_tx_count_{days}d" for days in WINDOW_DAYS),
    *(f"customer_tx_amount_mean_{days}d" for days in WINDOW_DAYS),
    *(f"terminal_tx_count_{days}d" for days in WINDOW_DAYS),
    *(f"terminal_fraud_risk_{days}d" for days in WINDOW_DAYS),
)
PLATFORM_FEATURES = (
    *PUBLISHED_FEATURES[:-3],
    *(f"terminal_labelled_tx_count_{days}d" for days in WINDOW_DAYS),
    *PUBLISHED_FEATURES[-3:],
)


@dataclass(frozen=True)
class History:
    """The transactions of all entities of a kind, ordered by entity and time, with running totals.

    `keys` grow with entity and time; `order` holds the caller's row at each place in them, `own` the place of
    each row, `starts` what the keys of an entity begin with. Totals are of all places before.
    """

    keys: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    own: np.ndarray
    first: int
    span: int
    totals: dict[str, np.ndarray]

    @classmethod
    def of(cls, entities: np.ndarray, times: np.ndarray, values: dict[str, np.ndarray]) -> History:
        """Order the rows; `values` are integers to be totalled, `own` is each row's place in the order."""
        if (np.diff(times) < 0).any():
            raise ValueError("transactions must be sorted by time")
        _, codes = np.unique(entities, return_inverse=True)
        order = np.argsort(codes, kind="stable")
        first, span = int(times[0]), int(times[-1] - times[0]) + 3
        starts = codes[order].astype(np.int64) * span
        own = np.empty(len(order), dtype=np.int64)
        own[order] = np.arange(len(order))
        return cls(
            keys=starts + (times[order] - first + 1),
            order=order,
            starts=starts,
            own=own,
            first=first,
            span=span,
            totals={name: np.concatenate([[0], np.cumsum(v[order])]) for name, v in values.items()},
        )

    def up_to(self, moments: np.ndarray) -> np.ndarray:
        """Return, for each row, the place after its entity's last transaction at or before the moment."""
        return self._place(moments, "right")

    def before(self, moments: np.ndarray) -> np.ndarray:
        """Return, for each row, the place after its entity's last transaction strictly before the moment."""
        return self._place(moments, "left")

    def total(self, name: str, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Return the total over the places [start, end)."""
        return self.totals[name][end] - self.totals[name][start]

    def _place(self, moments: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
        since_first = np.clip(moments[self.order] - self.first + 1, 0, self.span - 1)
        place = np.empty(len(moments), dtype=np.int64)
        # Sought in the order of the keys, each search finds the memory of the one before it cached.
        place[self.order] = np.searchsorted(self.keys, self.starts + since_first, side=side)
        return place


def published_features(transactions: pd.DataFrame) -> pd.DataFrame:
    """Return the Handbook's 15 features, one row a transaction, in the order of `PUBLISHED_FEATURES`.

    `transactions` has `time` (microseconds, UTC), `customer_id`, `terminal_id`, `tx_amount` and `is_fraud`,
    sorted by time. The customer's windows (t - w, t] hold the transaction itself and no later row; the
    terminal's (t - 7 days - w, t - 7 days] only transactions whose label is known. Source: the description in
    the Fraud Detection Handbook (Le Borgne et al.), chapter 3.
    """
    times = transactions["time"].to_numpy()
    customers, terminals = _histories(transactions)
    columns = _of_the_transaction(transactions)
    known = terminals.up_to(times - DELAY_DAYS * DAY)
    for days in WINDOW_DAYS:
        start, end = customers.up_to(times - days * DAY), customers.own + 1
        columns[f"customer_tx_count_{days}d"] = end - start
        columns[f"customer_tx_amount_mean_{days}d"] = (
            customers.total("cents", start, end) / (end - start) / 100
        )
        since = terminals.up_to(times - (DELAY_DAYS + days) * DAY)
        columns[f"terminal_tx_count_{days}d"] = known - since
        columns[f"terminal_fraud_risk_{days}d"] = _share(
            terminals.total("frauds", since, known), known - since
        )
    return _frame(columns, PUBLISHED_FEATURES)


def platform_features(transactions: pd.DataFrame) -> pd.DataFrame:
    """Return `fraud_detection_v1`, one row a transaction: the last N full UTC days and today so far.

    Takes what `published_features` takes. "So far" is strictly before the transaction, which is then added
    itself. Labels count for full days that ended at least 7 days before today's midnight.
    """
    times = transactions["time"].to_numpy()
    midnight = times // DAY * DAY
    customers, terminals = _histories(transactions)
    columns = _of_the_transaction(transactions)
    cents = _cents(transactions)
    so_far, at_terminal = customers.before(times), terminals.before(times)
    known = terminals.before(midnight - DELAY_DAYS * DAY)
    for days in WINDOW_DAYS:
        start = customers.before(midnight - days * DAY)
        count = so_far - start + 1
        columns[f"customer_tx_count_{days}d"] = count
        total = customers.total("cents", start, so_far) + cents
        columns[f"customer_tx_amount_mean_{days}d"] = total / count / 100
        columns[f"terminal_tx_count_{days}d"] = at_terminal - terminals.before(midnight - days * DAY) + 1
        since = terminals.before(midnight - (DELAY_DAYS + days) * DAY)
        columns[f"terminal_labelled_tx_count_{days}d"] = known - since
        columns[f"terminal_fraud_risk_{days}d"] = _share(
            terminals.total("frauds", since, known), known - since
        )
    return _frame(columns, PLATFORM_FEATURES)


def _histories(transactions: pd.DataFrame) -> tuple[History, History]:
    times = transactions["time"].to_numpy()
    customers = History.of(transactions["customer_id"].to_numpy(), times, {"cents": _cents(transactions)})
    frauds = transactions["is_fraud"].to_numpy().astype(np.int64)
    return customers, History.of(transactions["terminal_id"].to_numpy(), times, {"frauds": frauds})


def _of_the_transaction(transactions: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return amount, weekend and night; day 0 of the epoch was a Thursday."""
    times = transactions["time"].to_numpy()
    return {
        "tx_amount": transactions["tx_amount"].to_numpy(),
        "tx_is_weekend": (times // DAY + 3) % 7 >= 5,
        "tx_is_night": times % DAY // (DAY // 24) <= 6,
    }


def _cents(transactions: pd.DataFrame) -> np.ndarray:
    return np.rint(transactions["tx_amount"].to_numpy() * 100).astype(np.int64)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _frame(columns: dict[str, np.ndarray], names: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame({name: columns[name].astype(np.float64) for name in names})
