"""Measure the recommender beside its baselines: known viewers, new viewers, and movies without ratings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.hybrid_recommender import GENRE_PREFIX, HybridRecommender
from src import baselines
from src.config import CollaborativeParameters, ContentParameters, K, SplitShares
from src.hybrid import Catalogue, fit_hybrid, recommended
from src.measures import (
    Interval,
    Lists,
    histories_of,
    hits_of,
    measures_with_intervals,
    paired_difference,
    top_lists,
    viewer_measures,
)
from src.preprocessor import cold_movies
from src.slices import slices_of, viewer_slices

HYBRID, POPULARITY, SAR = "hybrid", "popularity", "SAR"
GENRE_POPULARITY = "popularity of genres"
NDCG = f"ndcg_at_{K}"

Measures = dict[str, dict[str, Interval]]
"""Recommender -> measure -> value with its interval over viewers."""


@dataclass(frozen=True)
class Audience:
    """Viewers with something to be found: what they rated before, and what they rated after it."""

    viewers: np.ndarray
    histories: csr_matrix
    relevant: csr_matrix

    @classmethod
    def of(cls, viewers: np.ndarray, histories: csr_matrix, relevant: csr_matrix) -> Audience:
        """Leave out who rated nothing afterwards; raises EmptyWindowError when nobody is left."""
        measured = np.diff(relevant.indptr) > 0
        if not measured.any():
            raise EmptyWindowError("no viewer has ratings to be measured on")
        return cls(viewers[measured], histories[measured], relevant[measured])


@dataclass(frozen=True)
class Recipe:
    """What a model is fitted from beside the ratings: the movies, parameters and how ratings are cut."""

    movies: pd.DataFrame
    catalogue: Catalogue
    collaborative: CollaborativeParameters
    content: ContentParameters
    shares: SplitShares


@dataclass(frozen=True)
class ColdStart:
    """Movies without a rating in training, ranked among themselves for each viewer."""

    movies: int
    viewers: int
    measures: Measures
    better_than_popularity: Interval
    """nDCG@10 of the hybrid minus that of the genres' popularity, over the same viewers."""


@dataclass(frozen=True)
class HoldoutFigures:
    """Everything that is measured of a model before it is registered."""

    viewers: int
    known_viewers: Measures
    new_viewers: Interval
    cold_start: ColdStart
    slices: list[dict[str, float | int | str]]

    def metrics(self) -> dict[str, float]:
        """Return the figures of the hybrid by name, as runs and reports record them."""
        ours = {name: interval.value for name, interval in self.known_viewers[HYBRID].items()}
        beside = {
            f"{name.lower()}_{NDCG}": self.known_viewers[name][NDCG].value for name in (POPULARITY, SAR)
        }
        return {
            **ours,
            **beside,
            f"new_viewer_{NDCG}": self.new_viewers.value,
            f"new_movie_{NDCG}": self.cold_start.measures[HYBRID][NDCG].value,
            f"new_movie_popularity_{NDCG}": self.cold_start.measures[GENRE_POPULARITY][NDCG].value,
        }


def measure_holdout(
    model: HybridRecommender,
    training: csr_matrix,
    audience: Audience,
    ratings: csr_matrix,
    recipe: Recipe,
) -> HoldoutFigures:
    """Measure the model on the audience's last ratings, and its recipe on movies kept out of everything."""
    resamples = recipe.shares.bootstrap_resamples
    known, lists = measure_known_viewers(model, training, audience, resamples)
    cold = measure_cold_start(model, ratings, recipe)
    support = np.asarray(training.sum(axis=0)).ravel()
    return HoldoutFigures(
        viewers=len(audience.viewers),
        known_viewers=known,
        new_viewers=measure_new_viewers(model, audience, resamples),
        cold_start=cold,
        slices=slice_figures(lists[HYBRID], audience, recipe.movies, support, resamples),
    )


def measure_known_viewers(
    model: HybridRecommender, training: csr_matrix, audience: Audience, resamples: int
) -> tuple[Measures, dict[str, np.ndarray]]:
    """Return the measures of the hybrid, popularity and SAR, and their lists, on the same viewers."""
    support = np.asarray(training.sum(axis=0)).ravel()
    seen = audience.histories
    lists = {
        HYBRID: recommended(model, seen),
        POPULARITY: top_lists(baselines.popularity_scores(training, seen.shape[0]), seen),
        SAR: top_lists(baselines.sar_scores(training, seen), seen),
    }
    movies = training.shape[1]
    measures = {
        name: measures_with_intervals(
            Lists(positions, audience.relevant),
            support,
            training.shape[0],
            candidates=movies,
            resamples=resamples,
        )
        for name, positions in lists.items()
    }
    return measures, lists


def measure_new_viewers(model: HybridRecommender, audience: Audience, resamples: int) -> Interval:
    """Return nDCG@10 for the same viewers when their history is not known (what they saw is left out)."""
    scores = model.scores([np.empty(0, dtype=np.int64)] * len(audience.viewers))
    lists = Lists(top_lists(scores, audience.histories), audience.relevant)
    values = viewer_measures(lists)[NDCG]
    return paired_difference(values, np.zeros_like(values), resamples)


def measure_cold_start(model: HybridRecommender, ratings: csr_matrix, recipe: Recipe) -> ColdStart:
    """Keep a share of the movies out of everything, fit again, and rank them as new movies.

    All ratings of these movies are what is to be found; candidates are these movies alone, for each viewer.
    Popularity can't count what nobody rated, so its stand-in is the mean popularity of the movie's genres;
    beside it stand a random order and the same model without the viewer's history.
    """
    movies, catalogue, resamples = recipe.movies, recipe.catalogue, recipe.shares.bootstrap_resamples
    cold = cold_movies(catalogue.movie_ids, recipe.shares.cold_movies, "measured as new")
    warm_ids, cold_ids = catalogue.movie_ids[~cold], catalogue.movie_ids[cold]
    known = Catalogue(warm_ids, catalogue.content[~cold], catalogue.features)
    training, relevant = ratings[:, ~cold], ratings[:, cold]
    audience = Audience.of(np.arange(ratings.shape[0]), training, relevant)
    fitted = fit_hybrid(training, known, recipe.collaborative, recipe.content, model.parameters.blend)
    frame = movies[cold]

    def ranked(histories: list[np.ndarray]) -> np.ndarray:
        lists = fitted.recommend(histories, K, new_movies=frame, only=cold_ids).movie_ids
        return np.where(lists >= 0, np.searchsorted(cold_ids, lists), -1)

    number, unseen = len(audience.viewers), csr_matrix(audience.relevant.shape)
    genres = movies[[name for name in movies if name.startswith(GENRE_PREFIX)]].fillna(0).to_numpy(float)
    popular = baselines.genre_popularity(ratings.multiply(~cold).tocsr(), genres, cold)[cold]
    lists = {
        HYBRID: ranked([warm_ids[history] for history in histories_of(audience.histories)]),
        "hybrid without history": ranked([np.empty(0, dtype=np.int64)] * number),
        GENRE_POPULARITY: top_lists(np.tile(popular, (number, 1)), unseen),
        "random order": top_lists(np.random.default_rng(0).random((number, len(cold_ids))), unseen),
    }
    support = np.zeros(len(cold_ids))
    measured = {name: Lists(positions, audience.relevant) for name, positions in lists.items()}
    measures = {
        name: measures_with_intervals(
            each, support, ratings.shape[0], candidates=len(cold_ids), resamples=resamples
        )
        for name, each in measured.items()
    }
    values = {name: viewer_measures(each)[NDCG] for name, each in measured.items()}
    better = paired_difference(values[HYBRID], values[GENRE_POPULARITY], resamples)
    return ColdStart(len(cold_ids), number, measures, better)


def slice_figures(
    lists: np.ndarray, audience: Audience, movies: pd.DataFrame, support: np.ndarray, resamples: int
) -> list[dict[str, float | int | str]]:
    """Return nDCG@10 by history of the viewer, recall@10 by age and popularity of the movie."""
    figures: list[dict[str, float | int | str]] = []
    ndcg = viewer_measures(Lists(lists, audience.relevant))[NDCG]
    for name, mask in viewer_slices(np.diff(audience.histories.indptr)).items():
        if mask.any():
            zero = np.zeros(int(mask.sum()))
            figures.append(
                _figure(name, NDCG, int(mask.sum()), paired_difference(ndcg[mask], zero, resamples))
            )
    rows, columns = audience.relevant.nonzero()
    found = np.zeros(audience.relevant.shape, dtype=bool)
    hit_rows, places = np.nonzero(hits_of(Lists(lists, audience.relevant)))
    found[hit_rows, lists[hit_rows, places]] = True
    frame = movies.iloc[columns].assign(movie_rating_count=support[columns])
    for name, mask in slices_of(frame).items():
        if mask.any():
            interval = _share(found[rows, columns][mask], rows[mask], resamples)
            figures.append(_figure(name, f"recall_at_{K}", int(mask.sum()), interval))
    return figures


def _share(found: np.ndarray, viewers: np.ndarray, resamples: int) -> Interval:
    """Return the share of rows that were found; whole viewers are drawn."""
    units, unit_of_row = np.unique(viewers, return_inverse=True)
    hits, rows = np.bincount(unit_of_row, weights=found), np.bincount(unit_of_row)
    draws = np.random.default_rng(0).integers(0, len(units), (resamples, len(units)))
    lower, upper = np.quantile(hits[draws].sum(axis=1) / rows[draws].sum(axis=1), [0.025, 0.975])
    return Interval(float(found.mean()), float(lower), float(upper))


def _figure(name: str, measure: str, rows: int, interval: Interval) -> dict[str, float | int | str]:
    return {"slice": name, "measure": measure, "rows": rows, **vars(interval)}
