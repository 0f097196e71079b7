"""The distances, against numbers worked by hand and against what must always hold."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import entropy

from advanced_monitoring_scripts.distribution_drift import (
    CategoricalReference,
    NumericReference,
    comparable_bins,
    distance,
    jensen_shannon,
    kolmogorov_smirnov,
    psi,
    psi_by_chance,
    rate_change,
)

counts = st.lists(st.integers(0, 10_000), min_size=2, max_size=20)


@st.composite
def pairs(draw):
    """Two arrays of counts over the same bins, each with rows."""
    size = draw(st.integers(2, 20))
    bins = st.lists(st.integers(0, 10_000), min_size=size, max_size=size)
    first, second = np.array(draw(bins), float), np.array(draw(bins), float)
    assume(first.sum() > 0)
    assume(second.sum() > 0)
    return first, second


def test_psi_of_three_bins_worked_by_hand():
    # shares .5 .3 .2 and .2 .3 .5: (-.3) ln .4 + 0 + .3 ln 2.5 = .6 ln 2.5
    assert psi(np.array([50, 30, 20]), np.array([20, 30, 50])) == pytest.approx(0.6 * math.log(2.5))


def test_an_empty_bin_counts_half_a_row():
    # [10, 10] and [20, 0] -> shares .5 .5 and 20/20.5 .5/20.5
    q = np.array([20 / 20.5, 0.5 / 20.5])
    expected = ((q - 0.5) * np.log(q / 0.5)).sum()
    assert psi(np.array([10, 10]), np.array([20, 0])) == pytest.approx(expected)


def test_a_bin_that_both_sides_leave_empty_changes_nothing():
    assert psi(np.array([5, 0, 7]), np.array([6, 0, 6])) == psi(np.array([5, 7]), np.array([6, 6]))


@given(counts, st.integers(1, 50))
def test_psi_of_equal_shares_is_zero_whatever_the_number_of_rows(bins, times):
    reference = np.array(bins, float)
    assume(reference.sum() > 0)
    assert psi(reference, reference * times) == pytest.approx(0.0, abs=1e-12)


@given(pairs())
def test_psi_is_not_negative_and_the_same_both_ways(pair):
    first, second = pair
    assert psi(first, second) >= 0
    assert psi(first, second) == pytest.approx(psi(second, first))


@given(pairs())
def test_psi_is_the_sum_of_both_relative_entropies(pair):
    first, second = (np.where(side == 0, 1.0, side) for side in pair)
    assert psi(first, second) == pytest.approx(entropy(first, second) + entropy(second, first), abs=1e-9)


def test_psi_grows_with_the_shift():
    grid = np.linspace(-3, 3, 20_001)
    edges = np.quantile(grid, np.linspace(0, 1, 21)[1:-1])
    reference = NumericReference(edges, NumericReference(edges, np.ones(20), 0).current_counts(grid), 0)
    values = [
        psi(reference.counts, reference.current_counts(grid + shift))
        for shift in (0, 0.1, 0.3, 0.6, 1, 2, 4, 8)
    ]
    assert values[0] == pytest.approx(0)
    assert values == sorted(values)
    assert all(later > earlier for earlier, later in pairwise(values[:-1])), "the last shift leaves the bins"


@given(st.integers(2, 19))
def test_moving_one_more_row_from_bin_to_bin_never_lowers_psi(bins):
    reference = np.full(bins, 100.0)
    moved = [reference + step * (np.eye(bins)[1] - np.eye(bins)[0]) for step in range(0, 101, 5)]
    values = [psi(reference, current) for current in moved]
    assert values == sorted(values)


@given(pairs())
def test_jensen_shannon_lies_between_nothing_and_one_bit_and_is_the_same_both_ways(pair):
    first, second = pair
    value = jensen_shannon(first, second)
    assert 0 <= value <= 1
    assert value == pytest.approx(jensen_shannon(second, first), abs=1e-12)
    assert jensen_shannon(first, first * 3) == pytest.approx(0, abs=1e-12)


@given(pairs())
def test_ks_is_at_most_the_difference_of_all_shares(pair):
    first, second = pair
    value = kolmogorov_smirnov(first, second)
    assert 0 <= value <= np.abs(first / first.sum() - second / second.sum()).sum() / 2 + 1e-12


def test_chance_explains_what_it_should():
    """Of samples drawn from the reference itself, about one in a hundred exceeds the bound for 1 %."""
    rng = np.random.default_rng(7)
    shares = rng.dirichlet(np.full(20, 5.0))
    reference, current = rng.multinomial(50_000, shares, 2000), rng.multinomial(2_000, shares, 2000)
    bound = psi_by_chance(20, 50_000, 2_000, 0.01)
    exceeded = np.mean([psi(p, q) > bound for p, q in zip(reference, current, strict=True)])
    assert 0.004 < exceeded < 0.025


@given(
    st.lists(st.integers(0, 5_000), min_size=1, max_size=20).filter(sum),
    st.integers(1, 3_000),
    st.randoms(use_true_random=False),
)
def test_joined_bins_hold_enough_expected_rows_and_lose_none(reference_counts, rows, random):
    reference = NumericReference(
        np.arange(len(reference_counts) - 1, dtype=float), np.array(reference_counts, float), 0
    )
    current = np.bincount(
        [random.randrange(len(reference_counts)) for _ in range(rows)], minlength=len(reference_counts)
    ).astype(float)
    expected, joined = comparable_bins(reference, current)
    assert expected.sum() == reference.counts.sum()
    assert joined.sum() == rows
    assert len(expected) == 1 or (expected / expected.sum() * rows >= 5 - 1e-9).all()


def test_a_small_sample_is_compared_on_fewer_bins():
    reference = NumericReference(np.arange(19.0), np.full(20, 1000.0), 0)
    assert distance(reference, np.full(20, 1000.0), 0.001).bins == 20
    assert distance(reference, np.full(20, 1.0), 0.001).bins == 4
    assert distance(reference, np.full(20, 1.0), 0.001).psi == pytest.approx(0)


def test_an_edge_belongs_to_the_bin_above_it():
    reference = NumericReference(np.array([0.0, 10.0]), np.ones(3), 0)
    assert reference.current_counts(np.array([-1.0, 0.0, 9.9, 10.0, np.inf, np.nan])).tolist() == [1, 2, 2]
    assert reference.null_number(np.array([1.0, np.nan, np.nan])) == 2


def test_an_unknown_category_is_counted_apart_and_raises_the_distance():
    reference = CategoricalReference(("a", "b"), np.array([500.0, 500.0]), 0)
    values = np.array(["a"] * 50 + ["b"] * 45 + ["new"] * 5 + [None], dtype=object)
    counted = reference.current_counts(values)
    assert counted.tolist() == [50, 45, 5]
    assert reference.null_number(values) == 1
    with_news = distance(reference, counted, 0.001)
    assert with_news.bins == 3
    assert with_news.psi > distance(reference, np.array([52.0, 48.0, 0.0]), 0.001).psi


def test_a_change_of_rate_within_chance_is_told_from_one_beyond():
    small, large = rate_change(10, 1000, 14, 1000, 0.001), rate_change(10, 1000, 60, 1000, 0.001)
    assert small.difference < small.by_chance
    assert large.difference > large.by_chance
    assert rate_change(0, 10, 0, 10, 0.001).by_chance == 0
