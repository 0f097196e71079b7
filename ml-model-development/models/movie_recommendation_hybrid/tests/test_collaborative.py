"""EASE against a direct solve of its formula, ALS against the library's own recalculation."""

from __future__ import annotations

import numpy as np
import pytest
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from src.collaborative import fit_als, fit_ease, warm_movies
from src.config import CollaborativeParameters, ContentParameters
from src.content import fit_content_map
from src.hybrid import Catalogue, fit_hybrid

from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.hybrid_recommender import BlendWeights


def made_up(viewers: int, movies: int, seed: int = 0) -> csr_matrix:
    rng = np.random.default_rng(seed)
    dense = (rng.random((viewers, movies)) < 0.3).astype(np.float32)
    dense[0], dense[:, 0] = 1, 1
    return csr_matrix(dense)


def direct_ease(rated: csr_matrix, regularization: float, dropout: float) -> np.ndarray:
    """Solve the formula of the paper as it stands there."""
    dense = rated.toarray().astype(np.float64)
    gram = dense.T @ dense
    penalty = regularization + np.diag(gram) * dropout / (1 - dropout)
    inverse = np.linalg.inv(gram + np.diag(penalty))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("shape", [(40, 15), (15, 40)], ids=["more viewers", "more movies"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_ease_with_all_factors_is_the_direct_solution(shape: tuple[int, int], dropout: float) -> None:
    rated = made_up(*shape)
    parameters = CollaborativeParameters(ease_regularization=7.0, ease_dropout=dropout, ease_rank=1000)
    assert fit_ease(rated, parameters).weights() == pytest.approx(direct_ease(rated, 7.0, dropout), abs=1e-10)


def test_fewer_factors_stay_close_and_more_come_closer() -> None:
    rated, wanted = made_up(60, 30), direct_ease(made_up(60, 30), 7.0, 0.3)
    errors = []
    for rank in (2, 10, 30):
        parameters = CollaborativeParameters(ease_regularization=7.0, ease_dropout=0.3, ease_rank=rank)
        errors.append(np.abs(fit_ease(rated, parameters).weights() - wanted).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-10


def test_the_hybrid_scores_histories_as_ease_does() -> None:
    rated = made_up(50, 20)
    parameters = CollaborativeParameters(minimum_ratings=1, ease_regularization=5.0, als_factors=3)
    catalogue = Catalogue(np.arange(20), np.ones((20, 1), dtype=np.float32), ("movie_is_any",))
    blend = BlendWeights(0.0, 0.0, 0.0, 0.0, 0.25, 1.0)
    model = fit_hybrid(rated, catalogue, parameters, ContentParameters(), blend)
    history = np.array([2, 5, 11])
    wanted = direct_ease(rated, 5.0, parameters.ease_dropout)[history].sum(axis=0)
    standardised = (wanted - wanted.mean()) / wanted.std()
    assert model.scores([history])[0] == pytest.approx(standardised, abs=1e-4)


def test_a_viewers_factor_is_solved_as_the_library_does() -> None:
    rated = made_up(40, 25)
    parameters = CollaborativeParameters(minimum_ratings=1, als_factors=4, als_regularization=2.0)
    catalogue = Catalogue(np.arange(25), np.ones((25, 1), dtype=np.float32), ("movie_is_any",))
    blend = BlendWeights(1.0, 0.0, 0.0, 0.0, 0.25, 1.0)
    model = fit_hybrid(rated, catalogue, parameters, ContentParameters(), blend)
    library = AlternatingLeastSquares(
        factors=4, regularization=2.0, alpha=parameters.als_confidence, use_cg=False, num_threads=1
    )
    library.fit(rated, show_progress=False)
    library.item_factors = model.arrays.als_factors
    library._YtY = None
    factor = library.recalculate_user(0, rated[7].tocsr())
    wanted = model.arrays.als_factors @ np.ravel(factor)
    scores = model.scores([np.flatnonzero(rated[7].toarray()[0])])[0]
    assert np.corrcoef(scores, wanted)[0, 1] == pytest.approx(1.0, abs=1e-4)


def test_fits_repeat_to_the_bit() -> None:
    rated, parameters = made_up(40, 25), CollaborativeParameters(minimum_ratings=1, als_factors=4)
    assert fit_als(rated, parameters).tobytes() == fit_als(rated, parameters).tobytes()
    assert fit_ease(rated, parameters).factors.tobytes() == fit_ease(rated, parameters).factors.tobytes()


def test_movies_with_too_few_ratings_have_no_collaborative_part() -> None:
    rated = csr_matrix(np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=float))
    assert warm_movies(rated, 2).tolist() == [0, 1]
    with pytest.raises(EmptyWindowError, match="no movie has 4 ratings"):
        warm_movies(rated, 4)


def test_the_content_map_is_two_ridge_regressions() -> None:
    rng = np.random.default_rng(3)
    rated, content = made_up(30, 12), rng.random((12, 4)).astype(np.float32)
    learned = fit_content_map(rated, content, ContentParameters(taste_ridge=0.5, content_ridge=2.0))
    dense, matrix = rated.toarray().astype(float), content.astype(float)
    tastes = (dense @ matrix) / dense.sum(axis=1, keepdims=True)
    left = np.linalg.inv(tastes.T @ tastes + 0.5 * np.eye(4)) @ tastes.T @ dense @ matrix
    assert learned == pytest.approx(left @ np.linalg.inv(matrix.T @ matrix + 2 * np.eye(4)), abs=1e-6)
