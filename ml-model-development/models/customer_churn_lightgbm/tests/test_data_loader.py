"""Who is held out stays held out, and only matured labels are used."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import pytest
from conftest import AS_OF, FakeFeatureStore, make_subscribers
from src.config import ChurnFolds
from src.data_loader import KEY, LABEL, load_labelled, split_holdout, stratified_folds

from common_ml_utils.errors import DataError, EmptyWindowError, OneClassLabelsError, SchemaMismatchError


def test_a_fifth_of_each_class_is_held_out_and_nobody_twice(subscribers: pd.DataFrame) -> None:
    training, holdout = split_holdout(subscribers)
    assert len(training) + len(holdout) == len(subscribers)
    assert not set(training[KEY]) & set(holdout[KEY])
    for label in (0, 1):
        held_out = (holdout[LABEL] == label).sum() / (subscribers[LABEL] == label).sum()
        assert held_out == pytest.approx(0.2, abs=0.005)


def test_who_is_held_out_does_not_hang_on_the_order_of_rows(subscribers: pd.DataFrame) -> None:
    shuffled = subscribers.sample(frac=1, random_state=0)
    assert set(split_holdout(shuffled)[1][KEY]) == set(split_holdout(subscribers)[1][KEY])


def test_subscribers_stay_on_their_side_when_others_join() -> None:
    everyone = make_subscribers(1200)
    before, after = split_holdout(everyone.head(900)), split_holdout(everyone)
    moved = set(before[0][KEY]) & set(after[1][KEY])
    assert len(moved) <= 0.02 * 900  # only those at the border of the share


def test_folds_validate_every_row_once_with_equal_shares(subscribers: pd.DataFrame) -> None:
    folds = stratified_folds(subscribers, ChurnFolds(folds=5))
    validated = pd.concat([validation for _, validation in folds])
    assert sorted(validated[KEY]) == sorted(subscribers[KEY])
    for fit, validation in folds:
        assert not set(fit[KEY]) & set(validation[KEY])
        assert validation[LABEL].mean() == pytest.approx(subscribers[LABEL].mean(), abs=0.01)


def test_too_few_of_a_class_can_not_be_folded(subscribers: pd.DataFrame) -> None:
    rare = subscribers.assign(churned=[1, 1] + [0] * (len(subscribers) - 2))
    with pytest.raises(DataError, match="the rarer one has 2"):
        stratified_folds(rare, ChurnFolds(folds=5))


def test_one_class_is_refused(subscribers: pd.DataFrame) -> None:
    with pytest.raises(OneClassLabelsError):
        split_holdout(subscribers.assign(churned=0))


def test_labels_that_are_not_known_yet_leave_nothing_to_train_on(subscribers: pd.DataFrame) -> None:
    store = FakeFeatureStore(subscribers)
    with pytest.raises(EmptyWindowError, match="no label known at 2024-05-30"):
        load_labelled(store, store.published, datetime(2024, 5, 30, tzinfo=UTC))
    assert len(load_labelled(store, store.published, datetime(2024, 5, 31, tzinfo=UTC))) == len(subscribers)


def test_snapshots_are_asked_for_with_known_labels(subscribers: pd.DataFrame) -> None:
    store = FakeFeatureStore(subscribers)
    load_labelled(store, store.published, AS_OF)
    [entities] = store.asked
    assert entities.table == ("labels", "fct_churn_labels")
    assert entities.labels_known_as_of == AS_OF


def test_a_missing_feature_is_refused(subscribers: pd.DataFrame) -> None:
    store = FakeFeatureStore(subscribers.drop(columns="subscriber_contract"))
    with pytest.raises(SchemaMismatchError, match="subscriber_contract"):
        load_labelled(store, store.published, AS_OF)
