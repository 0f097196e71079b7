"""Fit the parts of the hybrid, and choose on validation how they are mixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
from scipy.sparse import csr_matrix
from tqdm import tqdm

from common_ml_utils.hybrid_recommender import (
    BlendWeights,
    HybridArrays,
    HybridParameters,
    HybridRecommender,
)
from src.collaborative import fit_als, fit_ease, warm_movies
from src.config import BlendGrid, CollaborativeParameters, ContentParameters, K
from src.content import fit_content_map
from src.measures import Lists, histories_of, top_lists, viewer_measures

NEW_VIEWER, KNOWN_VIEWERS = "new viewer", "known viewers"


@dataclass(frozen=True)
class Catalogue:
    """The movies in order of id: what they are, shape (movies, columns), and the features that say so."""

    movie_ids: np.ndarray
    content: np.ndarray
    features: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One mixture and its nDCG@10 on validation, of known viewers or of viewers without their history."""

    audience: str
    blend: BlendWeights
    ndcg: float

    def as_row(self) -> dict[str, float | str]:
        """Return the trial flat, for reports."""
        return {"audience": self.audience, **asdict(self.blend), "ndcg_at_10": self.ndcg}


def fit_hybrid(
    training: csr_matrix,
    catalogue: Catalogue,
    collaborative: CollaborativeParameters,
    content: ContentParameters,
    blend: BlendWeights,
) -> HybridRecommender:
    """Fit EASE, ALS and the content map on who rated what; the mixture is given."""
    warm = warm_movies(training, collaborative.minimum_ratings)
    ease = fit_ease(training[:, warm], collaborative)
    arrays = HybridArrays(
        movie_ids=catalogue.movie_ids.astype(np.int64),
        support=np.asarray(training.sum(axis=0)).ravel().astype(np.int32),
        content=catalogue.content,
        content_map=fit_content_map(training, catalogue.content, content),
        warm=warm,
        ease_factors=ease.factors.astype(np.float32),
        ease_in=ease.into.astype(np.float32),
        ease_out=ease.out.astype(np.float32),
        als_factors=fit_als(training[:, warm], collaborative),
    )
    parameters = HybridParameters(
        blend, collaborative.als_regularization, collaborative.als_confidence, catalogue.features
    )
    return HybridRecommender(arrays, parameters)


def with_blend(model: HybridRecommender, blend: BlendWeights) -> HybridRecommender:
    """Return the same parts in another mixture."""
    return HybridRecommender(model.arrays, replace(model.parameters, blend=blend))


def recommended(model: HybridRecommender, histories: csr_matrix, k: int = K) -> np.ndarray:
    """Return the k best unseen positions of each viewer, -1 where none is left."""
    ids = model.arrays.movie_ids
    lists = model.recommend([ids[history] for history in histories_of(histories)], k).movie_ids
    return np.where(lists >= 0, np.searchsorted(ids, lists), -1)


def choose_blend(
    model: HybridRecommender, histories: csr_matrix, relevant: csr_matrix, grid: BlendGrid
) -> tuple[BlendWeights, list[Trial]]:
    """Choose the mixture with the best nDCG@10 on validation, one weight after the other.

    How much popularity counts is chosen for viewers whose history is left out (they see nothing else), the
    other weights for viewers with their history. Of equally good values the first is taken.
    """
    movie_ids = model.arrays.movie_ids
    nobody = csr_matrix(histories.shape, dtype=histories.dtype)
    trials: list[Trial] = []

    measured: dict[tuple[str, BlendWeights], float] = {}

    def measure(audience: str, blend: BlendWeights) -> float:
        if (audience, blend) in measured:
            return measured[audience, blend]
        known = nobody if audience == NEW_VIEWER else histories
        scores = with_blend(model, blend).scores([movie_ids[seen] for seen in histories_of(known)])
        lists = top_lists(scores, histories)
        ndcg = float(viewer_measures(Lists(lists, relevant))[f"ndcg_at_{K}"].mean())
        trials.append(Trial(audience, blend, ndcg))
        measured[audience, blend] = ndcg
        return ndcg

    start = BlendWeights(
        als_share=grid.als_shares[0],
        content_share=grid.content_shares[0],
        viewer_strength=grid.viewer_strengths[0],
        movie_strength=grid.movie_strengths[0],
        prior_scale=grid.prior_scales[0],
        popularity_scale=grid.popularity_scales[0],
    )
    steps: list[tuple[str, str, tuple[float, ...]]] = [
        (NEW_VIEWER, "popularity_scale", grid.popularity_scales),
        (KNOWN_VIEWERS, "als_share", grid.als_shares),
        (KNOWN_VIEWERS, "content_share", grid.content_shares),
        (KNOWN_VIEWERS, "prior_scale", grid.prior_scales),
        (KNOWN_VIEWERS, "movie_strength", grid.movie_strengths),
        (KNOWN_VIEWERS, "viewer_strength", grid.viewer_strengths),
    ]
    best = start
    for audience, name, values in tqdm(steps, desc="blend", unit="weight", disable=None):
        best = _best_of(best, name, values, partial(measure, audience))
    return best, trials


def _best_of(
    blend: BlendWeights, name: str, values: tuple[float, ...], measure: Callable[[BlendWeights], float]
) -> BlendWeights:
    candidates = [replace(blend, **{name: value}) for value in values]
    measured = [measure(candidate) for candidate in candidates]
    return candidates[int(np.argmax(measured))]
