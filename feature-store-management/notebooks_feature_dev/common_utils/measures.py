"""What the notebooks measure: pure functions of frames and arrays; days are midnights (UTC)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

DAY = pd.Timedelta(days=1)


def roc_auc(score: Sequence[float] | pd.Series, positive: Sequence[int] | pd.Series) -> float:
    """Return the probability that a positive has a higher score than a negative, a tie counting one half.

    >>> roc_auc([1, 2, 2, 3], [0, 0, 1, 1])
    0.875
    """
    ranks = pd.Series(np.asarray(score, dtype=float)).rank()
    chosen = np.asarray(positive) == 1
    count, others = int(chosen.sum()), int((~chosen).sum())
    if not count or not others:
        raise ValueError("an AUC needs positives and negatives")
    return float((ranks[chosen].sum() - count * (count + 1) / 2) / (count * others))


def top_lift(
    score: Sequence[float] | pd.Series, positive: Sequence[int] | pd.Series, share: float = 0.1
) -> float:
    """Return how many times as frequent positives are among the highest scores as among all.

    Rows that tie at the edge count in part, so that the order of equal scores does not matter.

    >>> top_lift([1, 1, 1, 2], [0, 0, 0, 1], share=0.25)
    4.0
    """
    scores, positives = np.asarray(score, dtype=float), np.asarray(positive, dtype=float)
    size = share * len(scores)
    edge = np.sort(scores)[::-1][max(0, int(np.ceil(size)) - 1)]
    above, tied = scores > edge, scores == edge
    found = positives[above].sum() + positives[tied].mean() * (size - above.sum())
    return float(found / size / positives.mean())


def concentration(counts: pd.Series) -> pd.DataFrame:
    """Return what share the largest entities hold: columns `entities` and `held`, both from 0 to 1."""
    ordered = np.sort(counts.to_numpy(dtype=float))[::-1]
    held = np.concatenate([[0.0], ordered.cumsum() / ordered.sum()])
    return pd.DataFrame({"entities": np.linspace(0.0, 1.0, len(held)), "held": held})


def by_day(frame: pd.DataFrame, entity: str, column: str | None = None) -> pd.DataFrame:
    """Return a matrix, a row an entity, a column a day without gaps: number of rows, or sum of a column."""
    days = pd.date_range(frame["tx_date"].min(), frame["tx_date"].max(), freq="D")
    grouped = frame.groupby([entity, "tx_date"])
    totals = grouped.size() if column is None else grouped[column].sum()
    return totals.unstack(fill_value=0).reindex(columns=days, fill_value=0).astype(float)


def days_after(frame: pd.DataFrame, lags: Iterable[int]) -> pd.Series:
    """Return, by number of days, the share of frauds at terminals with a fraud that many days before."""
    frauds, counts = by_day(frame, "terminal_id", "is_fraud"), by_day(frame, "terminal_id")
    shares = {}
    for lag in lags:
        marked = frauds.shift(lag, axis=1).fillna(0.0) > 0
        total = counts.where(marked, 0.0).to_numpy().sum()
        shares[lag] = frauds.where(marked, 0.0).to_numpy().sum() / total if total else np.nan
    return pd.Series(shares, name="share")


def full_days_before(totals: pd.DataFrame, days: int, delay_days: int = 0) -> pd.DataFrame:
    """Return, for each entity and day D, the total of the full days [D - delay - days, D - delay).

    NaN where the matrix of `by_day` does not reach back that far.
    """
    return totals.T.rolling(days).sum().shift(1 + delay_days).T


def at_rows(matrix: pd.DataFrame, frame: pd.DataFrame, entity: str) -> Numbers:
    """Return each row's value of a matrix of entities and days."""
    places = matrix.index.get_indexer(frame[entity]), matrix.columns.get_indexer(frame["tx_date"])
    return matrix.to_numpy()[places]


def mean_amount_before(frame: pd.DataFrame, days: int) -> Numbers:
    """Return each row's mean amount of its customer over the full days before it, NaN without any."""
    sums = at_rows(full_days_before(by_day(frame, "customer_id", "tx_amount"), days), frame, "customer_id")
    counts = at_rows(full_days_before(by_day(frame, "customer_id"), days), frame, "customer_id")
    return np.divide(sums, counts, out=np.full(len(frame), np.nan), where=counts > 0)


def risk_before(frame: pd.DataFrame, days: int, delay_days: int) -> Numbers:
    """Return each row's share of frauds at its terminal over full days, `delay_days` before its day.

    0 without transactions there, NaN before the history begins. With a delay shorter than that of the labels
    the value could not have been known: good for showing what that would pretend, and for nothing else.
    """
    frauds = full_days_before(by_day(frame, "terminal_id", "is_fraud"), days, delay_days)
    counts = full_days_before(by_day(frame, "terminal_id"), days, delay_days)
    return at_rows((frauds / counts.where(counts > 0)).mask(counts == 0, 0.0), frame, "terminal_id")


def day_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return for each row how many transactions its customer had strictly before it, counted in 3 ways.

    `exact`: in the 24 hours before; `full_day`: on the day before; `full_day_and_today`: from then on.
    """
    counts = {name: np.zeros(len(frame)) for name in ("exact", "full_day", "full_day_and_today")}
    seconds = frame["tx_datetime"].astype("int64").to_numpy() / _unit(frame["tx_datetime"])
    midnights = np.floor(seconds / 86400) * 86400
    for rows in frame.reset_index(drop=True).groupby("customer_id").indices.values():
        own = np.sort(seconds[rows])
        before = np.searchsorted(own, seconds[rows])
        yesterday = np.searchsorted(own, midnights[rows] - 86400)
        counts["exact"][rows] = before - np.searchsorted(own, seconds[rows] - 86400)
        counts["full_day"][rows] = np.searchsorted(own, midnights[rows]) - yesterday
        counts["full_day_and_today"][rows] = before - yesterday
    return pd.DataFrame(counts, index=frame.index)


def _unit(times: pd.Series) -> float:
    """Return how many units of the times' integers make a second."""
    return {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[np.datetime_data(times.dt.tz_convert(None).dtype)[0]]
