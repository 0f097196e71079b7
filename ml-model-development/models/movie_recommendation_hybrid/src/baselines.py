"""What the recommender is measured beside: popularity, SAR, and the popularity of genres for new movies.

SAR: Microsoft's "Simple Algorithm for Recommendation" (Argyriou, Gonzalez-Fierro and Zhang 2020), with
Jaccard similarity and every rating counted once: an item's affinity is the sum of its similarities to the
history.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix


def popularity_scores(training: csr_matrix, viewers: int) -> np.ndarray:
    """Return the number of ratings in training for every viewer alike, shape (viewers, movies)."""
    return np.tile(_support(training), (viewers, 1))


def jaccard_similarity(training: csr_matrix) -> csr_matrix:
    """Return |viewers of both| / |viewers of either|, shape (movies, movies); 0 where nobody rated both.

    >>> jaccard_similarity(csr_matrix(np.array([[1.0, 1.0], [1.0, 0.0]]))).toarray().tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    both = (training.T @ training).tocsr()
    each = _support(training).astype(both.dtype)
    rows = np.repeat(each, np.diff(both.indptr))  # the ratings of each entry's own movie
    shared = both.data / (rows + each[both.indices] - both.data)
    return csr_matrix((shared, both.indices, both.indptr), shape=both.shape)


def sar_scores(training: csr_matrix, histories: csr_matrix) -> np.ndarray:
    """Return the affinity of each history for every movie, shape (viewers, movies)."""
    return (histories @ jaccard_similarity(training)).toarray()


def genre_popularity(training: csr_matrix, genres: np.ndarray, cold: np.ndarray) -> np.ndarray:
    """Return what popularity can say of movies without ratings: the mean ratings a movie of its genres has.

    `genres` are flags, shape (movies, genres); `cold` masks the movies that were kept out of training. A
    movie of several genres has their mean, one of none the mean of all movies.
    """
    support, known = _support(training), ~cold
    carriers = np.maximum(genres[known].sum(axis=0), 1)
    per_genre = genres[known].T @ support[known] / carriers
    carried = genres.sum(axis=1)
    mean = genres @ per_genre / np.maximum(carried, 1)
    return np.where(carried > 0, mean, support[known].mean())


def _support(training: csr_matrix) -> np.ndarray:
    return np.asarray(training.sum(axis=0), dtype=np.float64).ravel()
