"""SAR and popularity on matrices small enough to work by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from src.baselines import genre_popularity, jaccard_similarity, popularity_scores, sar_scores

# Three viewers, four movies: movie 0 is rated by all, 1 by two, 2 by one, 3 by nobody.
RATED = csr_matrix(np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=float))


def test_jaccard_similarity_by_hand() -> None:
    expected = [[1, 2 / 3, 1 / 3, 0], [2 / 3, 1, 1 / 2, 0], [1 / 3, 1 / 2, 1, 0], [0, 0, 0, 0]]
    assert jaccard_similarity(RATED).toarray() == pytest.approx(np.array(expected))


def test_sar_adds_up_the_similarity_to_the_history() -> None:
    # The third viewer saw movie 0 alone: affinity 2/3 for movie 1, 1/3 for movie 2. The second saw 0 and 1.
    scores = sar_scores(RATED, RATED)
    assert scores[2] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert scores[1] == pytest.approx([1 + 2 / 3, 2 / 3 + 1, 1 / 3 + 1 / 2, 0])


def test_popularity_counts_ratings_of_training() -> None:
    assert popularity_scores(RATED, 2).tolist() == [[3, 2, 1, 0]] * 2


def test_a_new_movie_has_the_mean_popularity_of_its_genres() -> None:
    # Comedies 0 and 1 have 3 and 2 ratings, thriller 2 has 1; movie 3 is kept out.
    genres = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], dtype=float)
    cold = np.array([False, False, False, True])
    assert genre_popularity(RATED, genres, cold)[3] == pytest.approx((2.5 + 1) / 2)
    none = genres * np.array([[1], [1], [1], [0]])
    assert genre_popularity(RATED, none, cold)[3] == pytest.approx(2.0)
