"""The hybrid recommender as arrays: scores of every movie for viewers given by their histories. NumPy only.

score(viewer, movie) = w x collaborative + (1 - w) x prior, where
- w = (1 - content_share) x m / (m + viewer_strength) x n / (n + movie_strength), with m known movies in the
  history and n ratings of the movie in training: a new viewer or a new movie is scored by the prior alone;
- collaborative = a mix of EASE and ALS, each standardised over the movies that have enough ratings;
- prior = prior_scale x (content, standardised over the catalogue, + popularity_scale x popularity).

EASE: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", in factored form. ALS: Hu, Koren and
Volinsky 2008; a viewer's factor is solved from the history, so nobody need be known from training.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from common_ml_utils.errors import BundleError, DataError, SchemaMismatchError

PARAMETERS = "parameters"
CHUNK = 256  # viewers scored at once: 256 x 9,000 movies of float32 are 9 MB
NOTHING = -1
"""The movie id of a place in a list that no movie is left for; its score is NaN."""
AGE_BANDS = (0.0, 3.0, 8.0, 15.0, 25.0, 45.0)
"""Lower edges, in years, of the bands of a movie's age; younger than 0 counts as 0."""
GENRE_PREFIX = "movie_is_"
AGE, GENRE_COUNT = "movie_age_years", "movie_genre_count"


@dataclass(frozen=True)
class BlendWeights:
    """How the parts are mixed; every value is chosen on validation."""

    als_share: float
    content_share: float
    viewer_strength: float
    movie_strength: float
    prior_scale: float
    popularity_scale: float


@dataclass(frozen=True)
class Recommendations:
    """Lists of movies, best first: both of shape (viewers, k); NOTHING and NaN where none is left."""

    movie_ids: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class HybridArrays:
    """Everything that is learned; I movies in order of id, of which W have a collaborative part.

    movie_ids (I,) int64; support (I,) int32: ratings in training; content (I, D) float32: `content_matrix`;
    content_map (D, D) float64: taste -> content; warm (W,) int32: positions in movie_ids;
    ease_factors (W, R), ease_in (W,), ease_out (W,) float32: the weight of i for j is
    ease_in[i] x factors[i] . factors[j] x ease_out[j]; als_factors (W, F) float32.
    """

    movie_ids: np.ndarray
    support: np.ndarray
    content: np.ndarray
    content_map: np.ndarray
    warm: np.ndarray
    ease_factors: np.ndarray
    ease_in: np.ndarray
    ease_out: np.ndarray
    als_factors: np.ndarray


@dataclass(frozen=True)
class HybridParameters:
    """The numbers beside the arrays; `content_features` are the movie features that content is made of."""

    blend: BlendWeights
    als_regularization: float
    als_confidence: float
    content_features: tuple[str, ...]


def content_features(vector: Sequence[str]) -> tuple[str, ...]:
    """Return the features of a contract's vector that say what a movie is, whoever rated it."""
    genres = tuple(name for name in vector if name.startswith(GENRE_PREFIX))
    missing = [name for name in (AGE, GENRE_COUNT) if name not in vector]
    if missing or not genres:
        raise SchemaMismatchError(f"the feature service lacks {missing or GENRE_PREFIX + '*'}")
    return (*genres, GENRE_COUNT, AGE)


def content_matrix(frame: pd.DataFrame, features: Sequence[str]) -> np.ndarray:
    """Return what a movie is as numbers, shape (movies, columns) float32; nulls count as unknown: zeros.

    Columns: 1; no main genre; a flag a genre; genres / 5; a flag for each band of age. Raises
    SchemaMismatchError for a missing column or a value that is no number.
    """
    missing = sorted(set(features) - set(frame.columns))
    if missing:
        raise SchemaMismatchError(f"movie features are missing: {missing}")
    try:
        values = frame[list(features)].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise SchemaMismatchError(f"a movie feature is not a number: {error}") from error
    genres = np.nan_to_num(values[:, :-2])
    count, age = np.nan_to_num(values[:, -2]), values[:, -1]
    band = np.searchsorted(AGE_BANDS, np.maximum(np.nan_to_num(age), 0.0), side="right") - 1
    bands = (band[:, None] == np.arange(len(AGE_BANDS))) & ~np.isnan(age)[:, None]
    ones = np.ones(len(frame))
    columns = [ones, genres.sum(axis=1) == 0, *genres.T, count / 5, *bands.T]
    return np.column_stack(columns).astype(np.float32)


class HybridRecommender:
    """Scores and ranks movies for viewers given by their histories; batch and one viewer alike."""

    def __init__(self, arrays: HybridArrays, parameters: HybridParameters) -> None:
        self.arrays, self.parameters = arrays, parameters
        _check_shapes(arrays)
        self._warm_of = np.full(len(arrays.movie_ids), -1, dtype=np.int64)
        self._warm_of[arrays.warm] = np.arange(len(arrays.warm))
        self._sources = arrays.ease_factors * arrays.ease_in[:, None]
        self._targets = np.ascontiguousarray((arrays.ease_factors * arrays.ease_out[:, None]).T)
        own = (arrays.ease_factors**2).sum(axis=1) * arrays.ease_in * arrays.ease_out
        self._own_weight = own.astype(np.float32)
        factors = arrays.als_factors.astype(np.float64)
        self._als = factors
        self._als_targets = np.ascontiguousarray(arrays.als_factors.T)
        self._als_gram = factors.T @ factors + parameters.als_regularization * np.eye(factors.shape[1])
        self._content_targets = np.ascontiguousarray(
            (arrays.content @ arrays.content_map.T).astype(np.float32).T
        )
        counts = np.log1p(arrays.support.astype(np.float64))
        self._popularity_mean, self._popularity_std = counts.mean(), max(counts.std(), 1e-9)
        self._popularity = self._popularity_of(counts)
        strength = parameters.blend.movie_strength
        trust = arrays.support[arrays.warm] / np.maximum(arrays.support[arrays.warm] + strength, 1e-9)
        self._movie_trust = trust.astype(np.float32)

    def positions(self, movie_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return where movies stand in the catalogue, in the given order; unknown ones are left out."""
        wanted = _ids(movie_ids)
        known = self.arrays.movie_ids
        if not len(known):
            return np.empty(0, dtype=np.int64)
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return at[known[at] == wanted]

    def scores(
        self, histories: Sequence[Sequence[int] | np.ndarray], new_content: np.ndarray | None = None
    ) -> np.ndarray:
        """Return float32 scores of the catalogue, then of new movies, shape (viewers, movies)."""
        return self._scores([np.unique(self.positions(history)) for history in histories], new_content)

    def recommend(
        self,
        histories: Sequence[Sequence[int] | np.ndarray],
        k: int = 10,
        exclude_seen: bool = True,
        new_movies: pd.DataFrame | None = None,
        only: Sequence[int] | np.ndarray | None = None,
    ) -> Recommendations:
        """Return each viewer's k best movies. A tie goes to the catalogue's order, then to the frame's.

        `new_movies` has `movie_id` and the content features, one row a movie that the catalogue lacks (others
        are left out); they have no ratings and are ranked among the others. `only` keeps the lists to these
        movies. Raises DataError for k < 1 or an id that is no whole number, SchemaMismatchError for features
        that are missing.
        """
        if k < 1:
            raise DataError(f"k must be at least 1, not {k}")
        new_ids, new_content = self._new(new_movies)
        ids = np.concatenate([self.arrays.movie_ids, new_ids])
        allowed = None if only is None else np.isin(ids, _ids(only))
        seen_new = [np.isin(new_ids, _ids(history)) for history in histories] if len(new_ids) else None
        best = np.full((len(histories), k), NOTHING, dtype=np.int64)
        values = np.full((len(histories), k), np.nan)
        for start in range(0, len(histories), CHUNK):
            known = [np.unique(self.positions(history)) for history in histories[start : start + CHUNK]]
            scores = self._scores(known, new_content)
            for row, positions in enumerate(known):
                line = scores[row]
                if exclude_seen:
                    line[positions] = -np.inf
                    if seen_new is not None:
                        line[len(self.arrays.movie_ids) :][seen_new[start + row]] = -np.inf
                if allowed is not None:
                    line[~allowed] = -np.inf
                top = top_positions(line, k)
                best[start + row, : len(top)] = ids[top]
                values[start + row, : len(top)] = line[top]
        return Recommendations(best, values)

    def to_bytes(self) -> bytes:
        """Return the arrays and parameters as npz; the same ones give the same bytes."""
        parameters = {
            "blend": vars(self.parameters.blend),
            "als_regularization": self.parameters.als_regularization,
            "als_confidence": self.parameters.als_confidence,
            "content_features": list(self.parameters.content_features),
        }
        text = json.dumps(parameters, sort_keys=True, allow_nan=False).encode()
        buffer = io.BytesIO()
        np.savez(
            buffer,
            **vars(self.arrays),
            parameters=np.frombuffer(text, dtype=np.uint8),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> HybridRecommender:
        """Read what `to_bytes` wrote; raises BundleError for anything else, a pickle included."""
        names = [field.name for field in fields(HybridArrays)]
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                if sorted(archive.files) != sorted([*names, PARAMETERS]):
                    raise BundleError(f"the model holds {sorted(archive.files)}, not the arrays of a hybrid")
                arrays = HybridArrays(**{name: archive[name] for name in names})
                document = json.loads(archive[PARAMETERS].tobytes())
            return cls(arrays, _parameters(document))
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(f"the model can't be read as npz: {error}") from error

    def _scores(self, known: Sequence[np.ndarray], new_content: np.ndarray | None) -> np.ndarray:
        """Score viewers given by the distinct positions of their histories."""
        blend, arrays = self.parameters.blend, self.arrays
        prior, new_prior = self._content(known, new_content)
        prior += np.float32(blend.popularity_scale) * self._popularity
        prior *= np.float32(blend.prior_scale)
        warm = [self._warm_of[positions] for positions in known]
        warm = [positions[positions >= 0] for positions in warm]
        lengths = np.array([len(positions) for positions in warm], dtype=np.float64)
        if len(arrays.warm) and lengths.any():
            viewer_trust = lengths / np.maximum(lengths + blend.viewer_strength, 1e-9)
            viewer_trust *= 1 - blend.content_share
            trust = viewer_trust.astype(np.float32)[:, None] * self._movie_trust
            collaborative = self._collaborative(warm)
            part = prior[:, arrays.warm]
            part += trust * (collaborative - part)
            prior[:, arrays.warm] = part
        if new_prior is None:
            return prior
        new_prior += np.float32(blend.popularity_scale * self._popularity_of(np.zeros(1))[0])
        return np.concatenate([prior, new_prior * np.float32(blend.prior_scale)], axis=1)

    def _collaborative(self, warm: Sequence[np.ndarray]) -> np.ndarray:
        """Mix EASE and ALS, each standardised by viewer over the movies with enough ratings."""
        share = self.parameters.blend.als_share
        mixed = np.zeros((len(warm), len(self.arrays.warm)), dtype=np.float32)
        if share < 1:
            mixed += np.float32(1 - share) * _standardised(self._ease(warm))
        if share > 0:
            mixed += np.float32(share) * _standardised(self._alternating(warm))
        return mixed

    def _ease(self, warm: Sequence[np.ndarray]) -> np.ndarray:
        sums = np.stack([self._sources[positions].sum(axis=0) for positions in warm])
        scores = sums @ self._targets
        for row, positions in enumerate(warm):
            scores[row, positions] -= self._own_weight[positions]  # the diagonal of EASE's weights is zero
        return scores

    def _alternating(self, warm: Sequence[np.ndarray]) -> np.ndarray:
        confidence = self.parameters.als_confidence
        left = np.repeat(self._als_gram[None], len(warm), axis=0)
        right = np.zeros((len(warm), self._als.shape[1]))
        for row, positions in enumerate(warm):
            own = self._als[positions]
            left[row] += (confidence - 1) * own.T @ own
            right[row] = confidence * own.sum(axis=0)
        viewers = np.linalg.solve(left, right[:, :, None])[:, :, 0]
        return viewers.astype(np.float32) @ self._als_targets

    def _content(
        self, known: Sequence[np.ndarray], new_content: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Score by what the viewer's movies are, standardised by viewer over the catalogue."""
        content = self.arrays.content
        tastes = np.stack([taste_of(content, positions) for positions in known])
        scores = tastes @ self._content_targets
        mean, deviation = _moments(scores)
        scores = (scores - mean) / deviation
        if new_content is None:
            return scores, None
        new = tastes @ (new_content @ self.arrays.content_map.T).astype(np.float32).T
        return scores, (new - mean) / deviation

    def _popularity_of(self, log_counts: np.ndarray) -> np.ndarray:
        return ((log_counts - self._popularity_mean) / self._popularity_std).astype(np.float32)

    def _new(self, new_movies: pd.DataFrame | None) -> tuple[np.ndarray, np.ndarray | None]:
        if new_movies is None:
            return np.empty(0, dtype=np.int64), None
        if "movie_id" not in new_movies:
            raise SchemaMismatchError("new movies have no column movie_id")
        fresh = new_movies[~np.isin(_ids(new_movies["movie_id"].to_numpy()), self.arrays.movie_ids)]
        content = content_matrix(fresh, self.parameters.content_features)
        return _ids(fresh["movie_id"].to_numpy()), content


def taste_of(content: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the mean content of a history; of no history, the constant column alone (it stands first)."""
    if len(positions):
        return content[positions].mean(axis=0)
    nobody = np.zeros(content.shape[1], dtype=np.float32)
    nobody[0] = 1
    return nobody


def top_positions(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the k greatest scores, best first, ties by position; -inf is left out.

    >>> top_positions(np.array([1.0, 3.0, 3.0, -np.inf]), 3).tolist()
    [1, 2, 0]
    """
    if k < len(scores):
        cut = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero((scores >= cut) & (scores > -np.inf))
    else:
        candidates = np.flatnonzero(scores > -np.inf)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def _moments(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = scores.mean(axis=1, keepdims=True)
    return mean, np.maximum(scores.std(axis=1, keepdims=True), np.float32(1e-9))


def _standardised(scores: np.ndarray) -> np.ndarray:
    mean, deviation = _moments(scores)
    return (scores - mean) / deviation


def _ids(movie_ids: Any) -> np.ndarray:
    """Return ids as int64; raises DataError for what is not a list of whole numbers."""
    values = np.asarray(movie_ids)
    if values.size == 0:
        return np.empty(0, dtype=np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(
            f"movie ids must be a list of whole numbers, not {values.dtype} of {values.ndim} dims"
        )
    return values.astype(np.int64)


def _parameters(document: dict[str, Any]) -> HybridParameters:
    return HybridParameters(
        blend=BlendWeights(**{name: float(value) for name, value in document["blend"].items()}),
        als_regularization=float(document["als_regularization"]),
        als_confidence=float(document["als_confidence"]),
        content_features=tuple(document["content_features"]),
    )


def _check_shapes(arrays: HybridArrays) -> None:
    movies, warm = len(arrays.movie_ids), len(arrays.warm)
    columns = arrays.content.shape[-1]
    wanted = {
        "movie_ids": (movies,),
        "support": (movies,),
        "content": (movies, columns),
        "content_map": (columns, columns),
        "warm": (warm,),
        "ease_factors": (warm, arrays.ease_factors.shape[-1]),
        "ease_in": (warm,),
        "ease_out": (warm,),
        "als_factors": (warm, arrays.als_factors.shape[-1]),
    }
    wrong = sorted(name for name, shape in wanted.items() if getattr(arrays, name).shape != shape)
    if wrong:
        raise BundleError(f"arrays of the recommender have the wrong shape: {wrong}")
    if (np.diff(arrays.movie_ids) <= 0).any():
        raise BundleError("the recommender's movie ids are not in ascending order")
    if any(not np.isfinite(getattr(arrays, field.name)).all() for field in fields(HybridArrays)):
        raise BundleError("the recommender holds values that are not numbers")
