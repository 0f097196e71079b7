"""The content part: a bilinear map from a viewer's taste to movies, so that a new movie has a score."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from common_ml_utils.hybrid_recommender import taste_of
from src.config import ContentParameters
from src.measures import histories_of


def fit_content_map(
    training: csr_matrix, content: np.ndarray, parameters: ContentParameters, known: np.ndarray | None = None
) -> np.ndarray:
    """Return M of score = taste' M content, shape (columns, columns): two ridge regressions in closed form.

    It is fitted to who rated what of the `known` movies. A viewer's taste is the mean content of the history;
    a column of a movie nobody knows yet is a column of others, which is how the score carries over.
    """
    matrix = content.astype(np.float64)
    tastes = np.stack([taste_of(content, history) for history in histories_of(training)]).astype(np.float64)
    wanted = slice(None) if known is None else known
    seen, described = training.astype(np.float64)[:, wanted], matrix[wanted]
    columns = np.eye(matrix.shape[1])
    by_taste = tastes.T @ (seen @ described)
    left = np.linalg.solve(tastes.T @ tastes + parameters.taste_ridge * columns, by_taste)
    right = described.T @ described + parameters.content_ridge * columns
    return np.linalg.solve(right, left.T).T
