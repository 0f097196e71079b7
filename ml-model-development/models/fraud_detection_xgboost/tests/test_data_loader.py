"""The intervals never let a label be used before it was known."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pandas as pd
import pytest
from conftest import FakeFeatureStore
from hypothesis import given
from hypothesis import strategies as st
from src.config import FraudWindows
from src.data_loader import KEY, LABEL, Interval, load_day, load_labelled, resolve_intervals

from common_ml_utils.errors import EmptyWindowError, SchemaMismatchError

AS_OF = datetime(2018, 10, 1, tzinfo=UTC)
FIRST = date(2018, 4, 1)


def day(month: int, number: int) -> datetime:
    return datetime(2018, month, number, tzinfo=UTC)


def test_intervals_by_hand() -> None:
    intervals = resolve_intervals(AS_OF, FIRST, 7, FraudWindows())
    assert intervals.holdout == Interval(day(9, 17), day(9, 24))
    assert intervals.training == Interval(day(8, 13), day(9, 10))
    assert intervals.validation == Interval(day(9, 3), day(9, 10))
    assert intervals.fit == Interval(day(8, 13), day(8, 27))


@given(
    st.integers(0, 90).map(lambda days: datetime(2018, 9, 1, tzinfo=UTC) + timedelta(days=days)),
    st.integers(0, 10),
    st.integers(15, 40),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_every_label_is_known_where_it_is_used(
    as_of: datetime, delay_days: int, training: int, validation: int, holdout: int
) -> None:
    windows = FraudWindows(
        training_days=training + validation + delay_days, validation_days=validation, holdout_days=holdout
    )
    intervals = resolve_intervals(as_of, FIRST, delay_days, windows)
    delay = timedelta(days=delay_days)
    assert intervals.holdout.end + delay <= as_of
    assert intervals.training.end + delay == intervals.holdout.start
    assert intervals.fit.end + delay == intervals.validation.start
    assert intervals.fit.start == intervals.training.start
    assert intervals.validation.end == intervals.training.end
    assert intervals.holdout.end - intervals.holdout.start == timedelta(days=holdout)


def test_a_time_within_a_day_counts_as_its_midnight() -> None:
    noon = resolve_intervals(AS_OF + timedelta(hours=12), FIRST, 7, FraudWindows())
    assert noon == resolve_intervals(AS_OF, FIRST, 7, FraudWindows())


def test_few_days_shorten_the_training_and_too_few_are_refused() -> None:
    short = resolve_intervals(AS_OF, date(2018, 8, 20), 7, FraudWindows())
    assert short.training.start == day(8, 20)
    with pytest.raises(EmptyWindowError, match="too few days for a training as of 2018-10-01"):
        resolve_intervals(AS_OF, date(2018, 8, 27), 7, FraudWindows())


def test_labels_not_known_yet_are_left_out(store: FakeFeatureStore) -> None:
    interval = Interval(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 20, tzinfo=UTC))
    known_as_of = datetime(2024, 1, 15, tzinfo=UTC)
    frame = load_labelled(store, store.published, [interval], known_as_of)
    assert (frame["label_known_at"] <= known_as_of).all()
    assert frame["event_timestamp"].max() < datetime(2024, 1, 8, tzinfo=UTC)


def test_the_frame_holds_the_contracts_columns_and_no_other(store: FakeFeatureStore) -> None:
    interval = Interval(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC))
    frame = load_labelled(store, store.published, [interval], datetime(2024, 2, 1, tzinfo=UTC))
    assert list(frame.columns) == [
        KEY,
        "customer_id",
        "terminal_id",
        "event_timestamp",
        *store.published.service.feature_names,
        LABEL,
        "label_known_at",
    ]


def test_a_repeated_transaction_is_refused(transactions: pd.DataFrame) -> None:
    store = FakeFeatureStore(pd.concat([transactions, transactions.head(1)], ignore_index=True))
    interval = Interval(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC))
    with pytest.raises(SchemaMismatchError, match="transaction_id is not unique"):
        load_labelled(store, store.published, [interval], datetime(2024, 2, 1, tzinfo=UTC))


def test_a_day_is_scored_whether_its_labels_are_known_or_not(store: FakeFeatureStore) -> None:
    frame = load_day(store, store.published, date(2024, 2, 9))
    assert len(frame) == (store.transactions["event_timestamp"].dt.date == date(2024, 2, 9)).sum()
    assert LABEL not in frame.columns
    assert {"tx_timestamp", "customer_id"} <= set(frame.columns)
    with pytest.raises(EmptyWindowError):
        load_day(store, store.published, date(2024, 3, 9))
