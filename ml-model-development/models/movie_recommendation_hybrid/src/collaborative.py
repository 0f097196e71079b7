"""Collaborative filtering: EASE, solved exactly and kept as factors, and ALS by the library `implicit`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_matrix, diags

from common_ml_utils.errors import EmptyWindowError
from src.config import CollaborativeParameters


@dataclass(frozen=True)
class EaseFactors:
    """EASE's weight of movie i for movie j, i != j: into[i] x factors[i] . factors[j] x out[j]."""

    factors: np.ndarray
    into: np.ndarray
    out: np.ndarray

    def weights(self) -> np.ndarray:
        """Return all weights, shape (movies, movies), with the zero diagonal."""
        weights = (self.factors * self.into[:, None]) @ (self.factors * self.out[:, None]).T
        np.fill_diagonal(weights, 0)
        return weights


def warm_movies(training: csr_matrix, minimum_ratings: int) -> np.ndarray:
    """Return the positions of the movies with enough ratings for a collaborative part."""
    support = np.asarray(training.sum(axis=0)).ravel()
    warm = np.flatnonzero(support >= minimum_ratings).astype(np.int32)
    if not len(warm):
        raise EmptyWindowError(f"no movie has {minimum_ratings} ratings: there is nothing to learn from")
    return warm


def fit_ease(training: csr_matrix, parameters: CollaborativeParameters) -> EaseFactors:
    """Solve EASE in closed form (Steck 2019; with dropout, EDLAE, Steck 2020) and keep `ease_rank` factors.

    P = (X'X + L)^-1, L diagonal, and the weights are -P_ij / P_jj. With Z = X L^-1/2 = U S V',
    P = L^-1/2 (1 - V S^2/(1+S^2) V') L^-1/2: the eigenvectors of the smaller of ZZ' and Z'Z give V, so the
    cost is cubic in the smaller of viewers and movies. With all factors this is exact.
    """
    support = np.asarray(training.sum(axis=0), dtype=np.float64).ravel()
    dropout = parameters.ease_dropout
    penalty = parameters.ease_regularization + support * dropout / (1 - dropout)
    scaled = training.astype(np.float64) @ diags(penalty**-0.5)
    viewers, movies = scaled.shape
    if viewers <= movies:
        values, left = eigh((scaled @ scaled.T).toarray())
        kept = values > 1e-10 * max(float(values[-1]), 1e-300)
        values, left = values[kept][::-1], left[:, kept][:, ::-1]
        vectors = (scaled.T @ left) / np.sqrt(values)
    else:
        values, vectors = eigh((scaled.T @ scaled).toarray())
        kept = values > 1e-10 * max(float(values[-1]), 1e-300)
        values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    filtered = vectors * np.sqrt(values / (1 + values))
    diagonal = (1 - (filtered**2).sum(axis=1)) / penalty  # P_jj, from all factors
    filtered = filtered[:, : parameters.ease_rank]
    # An eigenvector's sign is arbitrary: the greatest entry is made positive.
    signs = np.sign(filtered[np.abs(filtered).argmax(axis=0), np.arange(filtered.shape[1])])
    return EaseFactors(filtered * signs, penalty**-0.5, penalty**-0.5 / diagonal)


def fit_als(training: csr_matrix, parameters: CollaborativeParameters) -> np.ndarray:
    """Return the movies' factors, shape (movies, factors) float32; one thread, so the bits repeat."""
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings():
        # It would rather have OpenBLAS on one thread, which it has, and a progress bar of notebooks.
        warnings.filterwarnings("ignore", message="OpenBLAS|IProgress")
        from implicit.als import AlternatingLeastSquares

        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=parameters.als_factors,
                regularization=parameters.als_regularization,
                alpha=parameters.als_confidence,
                iterations=parameters.als_iterations,
                num_threads=1,
                random_state=parameters.seed,
            )
            model.fit(training.astype(np.float32), show_progress=False)
            return np.asarray(model.item_factors, dtype=np.float32)
