"""The replay of a day: which transactions may be asked for together, and what the check is made of."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import yaml
from hypothesis import given
from hypothesis import strategies as st

from local_stack.parity.__main__ import DEFINITION
from local_stack.parity.rehearsal import wrong_definition
from local_stack.parity.replay import independent_groups, metric_sum
from local_stack.transactions import Transaction

MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)


def transaction(number: int, second: int, customer: int, terminal: int) -> Transaction:
    return Transaction(number, MIDNIGHT + timedelta(seconds=second), customer, terminal, 1.0)


@st.composite
def days(draw):
    rows = draw(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)
    )
    return [transaction(number, *row) for number, row in enumerate(sorted(rows))]


@given(days(), st.integers(1, 10))
def test_groups_keep_the_order_and_lose_nothing(day, largest):
    groups = list(independent_groups(day, largest))
    assert [one for group in groups for one in group] == day
    assert all(groups)


@given(days(), st.integers(1, 10))
def test_what_a_decision_depends_on_is_applied_before_and_nothing_else(day, largest):
    """Before a group is asked, exactly the groups before it are applied."""
    applied: list[Transaction] = []
    for group in independent_groups(day, largest):
        for one in group:
            shares = [
                other
                for other in day
                if other.customer_id == one.customer_id or other.terminal_id == one.terminal_id
            ]
            strictly_before = [other for other in shares if other.at < one.at]
            assert [other for other in applied if other in shares] == strictly_before
        applied += group


@given(days())
def test_moments_are_never_cut(day):
    groups = list(independent_groups(day, 3))
    assert all(one[-1].at < other[0].at for one, other in pairwise(groups))


def test_independent_transactions_share_a_group():
    day = [transaction(n, n, n, n) for n in range(5)]
    assert list(independent_groups(day)) == [day]


def test_a_transaction_is_text_with_microseconds():
    body = transaction(7, 3, 1, 2).body()
    assert body["tx_datetime"] == "2026-11-20T00:00:03.000000Z"
    assert json.loads(json.dumps(body)) == body


def test_the_wrong_definition_is_another_one():
    definition = yaml.safe_load(DEFINITION.read_text())
    wrong = wrong_definition(definition)
    assert wrong != definition
    assert [view["view"] for view in wrong["views"]] == [view["view"] for view in definition["views"]]


def test_metrics_are_summed_by_their_whole_name():
    page = 'a_total{view="x"} 2.0\na_total{view="y"} 3.0\na_total_created 9.0\nb 1.0\n'
    assert metric_sum(page, "a_total") == 5.0
    assert metric_sum(page, "c_total") == 0.0
