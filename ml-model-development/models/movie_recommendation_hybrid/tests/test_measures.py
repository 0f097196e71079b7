"""Measures worked by hand, and what must hold of any lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from src.measures import (
    Lists,
    coverage_of,
    measures_with_intervals,
    novelty_of,
    paired_difference,
    top_lists,
    viewer_measures,
)

from common_ml_utils.errors import EmptyWindowError


def lists_of(positions: list[list[int]], relevant: list[list[int]]) -> Lists:
    return Lists(np.array(positions), csr_matrix(np.array(relevant, dtype=float)))


def test_ndcg_precision_and_recall_by_hand() -> None:
    # Viewer 1: hits at places 1 and 3 of 3, two relevant. Gain 1 + 1/log2(4) = 1.5; ideal 1 + 1/log2(3).
    # Viewer 2: one of four relevant movies, at place 2: gain 1/log2(3); ideal of three places.
    lists = lists_of([[0, 1, 2], [4, 0, 3]], [[1, 0, 1, 0, 0], [1, 1, 1, 0, 0]])
    measured = viewer_measures(lists, k=3)
    ideal_two, ideal_three = 1 + 1 / np.log2(3), 1 + 1 / np.log2(3) + 0.5
    assert measured["ndcg_at_3"] == pytest.approx([1.5 / ideal_two, (1 / np.log2(3)) / ideal_three])
    assert measured["precision_at_3"] == pytest.approx([2 / 3, 1 / 3])
    assert measured["recall_at_3"] == pytest.approx([1, 1 / 3])


def test_a_list_cut_short_misses_its_empty_places() -> None:
    lists = lists_of([[0, -1, -1]], [[1, 1, 1]])
    measured = viewer_measures(lists, k=3)
    assert measured["precision_at_3"] == pytest.approx([1 / 3])
    assert measured["recall_at_3"] == pytest.approx([1 / 3])


def test_an_empty_place_is_no_hit_even_when_the_last_movie_is_relevant() -> None:
    assert viewer_measures(lists_of([[-1, -1]], [[0, 1]]), k=2)["ndcg_at_2"].tolist() == [0.0]


def test_a_viewer_with_nothing_relevant_is_refused() -> None:
    with pytest.raises(EmptyWindowError, match="1 viewers have nothing relevant"):
        viewer_measures(lists_of([[0], [1]], [[1, 0], [0, 0]]), k=1)


def test_novelty_and_coverage_by_hand() -> None:
    # Eight viewers; movie 0 was rated by 4 of them (1 bit), movie 1 by 1 (3 bits), movie 2 by none (3 bits).
    lists = lists_of([[0, 1], [2, -1]], [[1, 0, 0], [1, 0, 0]])
    assert novelty_of(lists, np.array([4, 1, 0]), 8) == pytest.approx([2.0, 3.0])
    assert coverage_of(lists.positions, 6) == pytest.approx(3 / 6)


def test_seen_movies_are_left_out_and_ties_go_to_the_catalogue() -> None:
    seen = csr_matrix(np.array([[0, 1, 0, 0], [0, 0, 0, 0]], dtype=float))
    scores = np.array([[1.0, 9.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_lists(scores, seen, k=2).tolist() == [[2, 3], [0, 1]]
    only = np.array([True, True, False, False])
    assert top_lists(scores, seen, k=2, only=only).tolist() == [[0, -1], [0, 1]]


@given(st.integers(0, 1000))
def test_perfect_lists_score_one_and_no_list_scores_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    relevant = (rng.random((4, 12)) < 0.4).astype(float)
    relevant[:, 0] = 1
    perfect = top_lists(relevant, csr_matrix(relevant.shape), k=3)
    any_order = top_lists(rng.random(relevant.shape), csr_matrix(relevant.shape), k=3)
    matrix = csr_matrix(relevant)
    assert viewer_measures(Lists(perfect, matrix), 3)["ndcg_at_3"] == pytest.approx(np.ones(4))
    values = viewer_measures(Lists(any_order, matrix), 3)
    assert all(((each >= 0) & (each <= 1)).all() for each in values.values())


def test_intervals_hold_the_value_and_repeat() -> None:
    rng = np.random.default_rng(0)
    relevant = (rng.random((60, 30)) < 0.3).astype(float)
    relevant[:, 0] = 1
    lists = Lists(top_lists(rng.random(relevant.shape), csr_matrix(relevant.shape)), csr_matrix(relevant))
    first, again = (
        measures_with_intervals(lists, np.ones(30), 60, candidates=30, resamples=200) for _ in range(2)
    )
    assert first == again
    for name in ("ndcg_at_10", "precision_at_10", "recall_at_10"):
        assert first[name].lower < first[name].value < first[name].upper


def test_equal_measures_differ_by_nothing() -> None:
    values = np.random.default_rng(1).random(50)
    difference = paired_difference(values, values.copy(), 100)
    assert (difference.value, difference.lower, difference.upper) == (0, 0, 0)
