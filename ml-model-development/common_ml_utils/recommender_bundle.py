"""The release bundle of a recommender: movies for a history, verified like every bundle, nothing pickled.

Beside the manifest it holds `model.npz` (arrays, read with pickle refused), `feature_service.json`,
`reference.json` (how recommended movies were distributed on the holdout, for drift) and `golden.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import BundleError, DataError
from common_ml_utils.hybrid_recommender import (
    NOTHING,
    HybridRecommender,
    Recommendations,
)
from common_ml_utils.release_bundle import (
    FEATURE_SERVICE,
    GOLDEN,
    MINIMUM_GOLDEN_ROWS,
    MODEL_FILES,
    REFERENCE,
    Manifest,
    Packaging,
    TrainingInterval,
    json_bytes,
    sha256_of,
    verify_bundle,
    write_files,
)

KIND = "recommender"
SCORE_TOLERANCE = 1e-4
"""Scores are sums in float32 in an order that hangs on the machine; lists may differ only within this."""
MODULES = (
    "__init__.py",
    "errors.py",
    "hybrid_recommender.py",
    "native_models.py",
    "preprocessing.py",
    "recommender_bundle.py",
    "release_bundle.py",
    "data_schemas/__init__.py",
    "data_schemas/training_data_contract.py",
)
REQUIREMENTS = ("numpy", "pandas", "pydantic")


@dataclass(frozen=True)
class GoldenList:
    """A request and the list every loader must answer it with, best first.

    `new_movies` are rows of `movie_id` and content features; null is unknown.
    """

    name: str
    history: list[int]
    movie_ids: list[int]
    scores: list[float]
    k: int = 10
    exclude_seen: bool = True
    new_movies: list[dict[str, float | int | None]] = field(default_factory=list)


@dataclass(frozen=True)
class RecommenderContents:
    """What goes into a recommender's bundle, before it is written."""

    model_name: str
    model: HybridRecommender
    contract: PublishedContract
    reference: dict[str, dict[str, Any]]
    golden: list[GoldenList]
    training: TrainingInterval
    label_policy_version: str | int
    git_commit: str
    data_version: str


def write_recommender_bundle(contents: RecommenderContents, folder: Path) -> str:
    """Write the bundle into an empty or new folder and return its identity, the manifest's SHA-256."""
    if len(contents.golden) < MINIMUM_GOLDEN_ROWS:
        raise BundleError(f"{len(contents.golden)} golden lists, at least {MINIMUM_GOLDEN_ROWS} are needed")
    files = {
        MODEL_FILES[KIND]: contents.model.to_bytes(),
        FEATURE_SERVICE: contents.contract.text.encode(),
        REFERENCE: json_bytes(contents.reference),
        GOLDEN: json_bytes([vars(each) for each in contents.golden]),
    }
    manifest = Manifest(
        model_name=contents.model_name,
        model_kind="recommender",
        model_file=MODEL_FILES[KIND],
        feature_service=contents.contract.service.name,
        label_policy_version=contents.label_policy_version,
        training=contents.training,
        git_commit=contents.git_commit,
        data_version=contents.data_version,
        files={name: sha256_of(content) for name, content in files.items()},
    )
    return write_files(folder, manifest, files)


class RecommenderBundle:
    """A loaded, verified recommender: `recommend` answers for many viewers at once, or for one."""

    def __init__(self, manifest: Manifest, contents: Mapping[str, bytes], sha256: str) -> None:
        if manifest.model_kind != KIND:
            raise BundleError(f"a bundle of kind {manifest.model_kind} is not a recommender")
        self.manifest = manifest
        self.sha256 = sha256
        try:
            self.contract = PublishedContract.parse(contents[FEATURE_SERVICE].decode())
            self.reference: dict[str, dict[str, Any]] = json.loads(contents[REFERENCE])
            self.golden = [GoldenList(**each) for each in json.loads(contents[GOLDEN])]
        except (DataError, ValueError, TypeError) as error:
            raise BundleError(f"the bundle can't be read: {error}") from error
        self.model = HybridRecommender.from_bytes(contents[manifest.model_file])
        vector = set(self.contract.service.feature_names)
        if unknown := sorted(set(self.model.parameters.content_features) - vector):
            raise BundleError(f"the model reads features that its feature service lacks: {unknown}")

    @classmethod
    def load(cls, folder: Path, expected_sha256: str | None = None) -> RecommenderBundle:
        """Verify, parse and try the bundle; raises BundleError when it is not exactly what was released."""
        bundle = cls(*verify_bundle(folder, expected_sha256))
        bundle.check_golden_rows()
        return bundle

    def recommend(
        self,
        histories: Sequence[Sequence[int] | np.ndarray],
        k: int = 10,
        exclude_seen: bool = True,
        new_movies: pd.DataFrame | None = None,
        only: Sequence[int] | np.ndarray | None = None,
    ) -> Recommendations:
        """Return the k best movies for each history of movie ids; see `HybridRecommender.recommend`."""
        return self.model.recommend(histories, k, exclude_seen, new_movies, only)

    def features_of(
        self, histories: Sequence[Sequence[int] | np.ndarray], recommendations: Recommendations
    ) -> pd.DataFrame:
        """Return what drift is measured on. Grain: viewer x recommended movie of the catalogue, best first.

        `viewer` is the place in `histories`, `rank` counts from 1; the other columns are those of
        `reference.json`: `viewer_rating_count` (known movies of the history), `movie_rating_count` (ratings
        in training) and `score`. New movies have no row.
        """
        viewers, places = np.nonzero(recommendations.movie_ids != NOTHING)
        ids = recommendations.movie_ids[viewers, places]
        known = np.isin(ids, self.model.arrays.movie_ids)
        viewers, places, ids = viewers[known], places[known], ids[known]
        lengths = np.array([len(self.model.positions(history)) for history in histories], dtype=np.float64)
        return pd.DataFrame(
            {
                "viewer": viewers,
                "rank": places + 1,
                "movie_id": ids,
                "viewer_rating_count": lengths[viewers],
                "movie_rating_count": self.model.arrays.support[self.model.positions(ids)].astype(np.float64),
                "score": recommendations.scores[viewers, places],
            }
        )

    def packaging(self) -> Packaging:
        """Return how MLflow holds this bundle: lists of movie ids in, lists of movies and scores out."""
        return Packaging(
            python_model="recommender_model.py",
            modules=MODULES,
            requirements=REQUIREMENTS,
            signature=_signature(),
            input_example=pd.DataFrame({"movie_ids": [each.history for each in self.golden[:3]]}),
        )

    def check_golden_rows(self) -> None:
        """Raise BundleError unless every golden list is reproduced, one viewer at a time and in a batch."""
        plain = [each for each in self.golden if each.k == 10 and each.exclude_seen and not each.new_movies]
        batch = self.recommend([each.history for each in plain])
        answers = [("batch", each, batch, row) for row, each in enumerate(plain)]
        answers += [("one-viewer", each, golden_answer(self.model, each), 0) for each in self.golden]
        for path, golden, answer, row in answers:
            kept = answer.movie_ids[row] != NOTHING
            problem = _difference(golden, answer.movie_ids[row][kept], answer.scores[row][kept])
            if problem:
                raise BundleError(f"golden list {golden.name!r}, {path} path: {problem}")


def golden_answer(model: HybridRecommender, golden: GoldenList) -> Recommendations:
    """Return what a model answers to a golden request."""
    new_movies = pd.DataFrame(golden.new_movies) if golden.new_movies else None
    return model.recommend([golden.history], golden.k, golden.exclude_seen, new_movies)


def golden_list(
    model: HybridRecommender,
    name: str,
    history: Sequence[int] | np.ndarray,
    k: int = 10,
    *,
    exclude_seen: bool = True,
    new_movies: pd.DataFrame | None = None,
) -> GoldenList:
    """Return a request with the model's own answer."""
    rows: list[dict[str, float | int | None]] = []
    if new_movies is not None:
        rows = [
            {str(key): _plain(key, value) for key, value in row.items()}
            for row in new_movies.to_dict("records")
        ]
    asked = GoldenList(name, [int(movie) for movie in history], [], [], k, exclude_seen, rows)
    answer = golden_answer(model, asked)
    kept = answer.movie_ids[0] != NOTHING
    return GoldenList(
        **{
            **vars(asked),
            "movie_ids": answer.movie_ids[0][kept].tolist(),
            "scores": [float(score) for score in answer.scores[0][kept]],
        }
    )


def _difference(golden: GoldenList, movie_ids: np.ndarray, scores: np.ndarray) -> str:
    """Say how an answer differs; movies may change places only where their scores are equal."""
    if len(movie_ids) != len(golden.movie_ids):
        return f"expected {len(golden.movie_ids)} movies, got {len(movie_ids)}"
    expected = np.array(golden.scores)
    apart = np.abs(scores - expected)
    if (~(apart <= SCORE_TOLERANCE)).any():
        place = int(np.argmax(~(apart <= SCORE_TOLERANCE)))
        return f"place {place + 1}: expected score {expected[place]}, got {scores[place]}"
    given = dict(zip(movie_ids.tolist(), scores.tolist(), strict=True))
    last = expected[-1] if len(expected) else 0.0
    for movie, score in zip(golden.movie_ids, golden.scores, strict=True):
        if movie not in given and score - last > SCORE_TOLERANCE:
            return f"movie {movie} is missing"
        if movie in given and abs(given[movie] - score) > SCORE_TOLERANCE:
            return f"movie {movie}: expected score {score}, got {given[movie]}"
    return ""


def _plain(name: Any, value: Any) -> float | int | None:
    if pd.isna(value):
        return None
    return int(value) if name == "movie_id" else float(value)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        inputs=Schema([ColSpec(Array(DataType.long), "movie_ids")]),
        outputs=Schema(
            [ColSpec(Array(DataType.long), "movie_ids"), ColSpec(Array(DataType.double), "scores")]
        ),
        params=ParamSchema(
            [ParamSpec("k", DataType.long, 10), ParamSpec("exclude_seen", DataType.boolean, True)]
        ),
    )
