"""The exact point-in-time join, for NumPy arrays: which row of a history was the newest known at a moment.

A row is visible from `visible_from = max(event, created)` on. Of the rows visible at a moment the one with
the greatest (event, created) is the newest, which is not always the one that became visible last: a late row
of an earlier time doesn't supersede a newer one. So the rows of a key are put in order of `visible_from`, the
running maximum of (event, created) says which is the newest from each of these times on, and one binary
search a question finds the time.

Keys are 64-bit integers, times microseconds since the epoch (UTC).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training_sets.errors import FeatureTableError

Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]

NOTHING = -1
LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class History:
    """The rows of one feature table, in any order: whose they are, from when they are true and known."""

    keys: Integers
    event: Integers
    created: Integers

    def __len__(self) -> int:
        return len(self.keys)


def latest_known(history: History, keys: Integers, moments: Integers) -> Integers:
    """Return, for each question (key, moment), the index of the newest row known, else NOTHING.

    Raises FeatureTableError where two rows of one key have the same two times. Time: n log n for n rows, and
    log n a question.

    >>> days = History(np.array([7, 7]), event=np.array([10, 20]), created=np.array([30, 20]))
    >>> latest_known(days, np.array([7, 7, 7, 8]), np.array([19, 20, 99, 99])).tolist()
    [-1, 1, 1, -1]
    """
    answers = np.full(len(keys), NOTHING, dtype=np.int64)
    if not len(history) or not len(keys):
        return answers
    visible_from = np.maximum(history.event, history.created)
    places, asked, answerable = _places(history.keys, visible_from, keys, moments)
    order = _order(places)
    if order is not None:
        places = places[order]
    newest = _newest(history, order)
    found = _last_not_after(places, asked)
    answerable &= found >= 0
    rows = newest[found[answerable]]
    own = history.keys[rows] == keys[answerable]
    answers[np.flatnonzero(answerable)[own]] = rows[own]
    return answers


def _last_not_after(places: Integers, asked: Integers) -> Integers:
    """Return the index of the last place that is not after each question, -1 where there is none.

    Questions in order walk through memory in order: several times faster for many.
    """
    order = np.argsort(asked)
    found = np.empty(len(asked), dtype=np.int64)
    found[order] = np.searchsorted(places, asked[order], side="right") - 1
    return found


def _order(places: Integers) -> Integers | None:
    """Return the order that sorts the places, None where they are sorted."""
    if bool(np.all(places[1:] >= places[:-1])):
        return None
    return np.argsort(places, kind="stable")


def _places(
    keys: Integers, times: Integers, asked_keys: Integers, asked_times: Integers
) -> tuple[Integers, Integers, Truths]:
    """Return (key, time) of rows and of questions as one number each, in the same order as the pairs.

    The third array tells which questions can have an answer at all. Where the ranges of keys and times are
    too wide for 64 bits, their ranks among the rows stand in for them.
    """
    first, last = int(times.min()), int(times.max())
    low, high = int(keys.min()), int(keys.max())
    answerable = (asked_keys >= low) & (asked_keys <= high) & (asked_times >= first)
    if (high - low + 1) * (last - first + 1) <= LARGEST:
        span = last - first + 1
        places = (keys - low) * span + (times - first)
        asked = np.zeros(len(asked_keys), dtype=np.int64)
        asked[answerable] = (asked_keys[answerable] - low) * span
        asked[answerable] += np.minimum(asked_times[answerable], last) - first
        return places, asked, answerable
    known_keys, known_times = np.unique(keys), np.unique(times)
    key_ranks = np.minimum(np.searchsorted(known_keys, asked_keys), len(known_keys) - 1)
    answerable &= known_keys[key_ranks] == asked_keys
    time_ranks = np.searchsorted(known_times, asked_times, side="right") - 1
    places = np.searchsorted(known_keys, keys) * len(known_times) + np.searchsorted(known_times, times)
    return places, key_ranks * len(known_times) + np.maximum(time_ranks, 0), answerable


def _newest(history: History, order: Integers | None) -> Integers:
    """Return, for each row in order of (key, visible_from), the newest row of its key up to there."""
    keys, event, created = history.keys, history.event, history.created
    rows = np.arange(len(history)) if order is None else order
    if order is not None:
        keys, event, created = keys[order], event[order], created[order]
    newer = (event[1:] > event[:-1]) | ((event[1:] == event[:-1]) & (created[1:] > created[:-1]))
    overtaken = (keys[1:] == keys[:-1]) & ~newer
    if not overtaken.any():
        return rows
    # Few keys have late rows, and only theirs need the running maximum.
    part = np.flatnonzero(np.isin(keys, keys[1:][overtaken]))
    keys, event, created = keys[part], event[part], created[part]
    by_age = np.lexsort((created, event, keys))
    _refuse_two_truths(keys[by_age], event[by_age], created[by_age])
    age = np.empty(len(part), dtype=np.int64)
    age[by_age] = np.arange(len(part))
    newest = rows.copy()
    # Ages rise from key to key, so the maximum never reaches over from one key to the next.
    newest[part] = rows[part[by_age[np.maximum.accumulate(age)]]]
    return newest


def _refuse_two_truths(keys: Integers, event: Integers, created: Integers) -> None:
    same = (keys[1:] == keys[:-1]) & (event[1:] == event[:-1]) & (created[1:] == created[:-1])
    if same.any():
        first = int(np.argmax(same))
        times = [str(np.datetime64(int(value), "us")) for value in (event[first], created[first])]
        raise FeatureTableError(
            f"{int(same.sum())} rows stand beside another of the same key and times, the key {keys[first]}, "
            f"event_timestamp {times[0]}, created_timestamp {times[1]} (UTC)"
        )
