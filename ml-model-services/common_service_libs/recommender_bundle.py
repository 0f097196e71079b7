"""A release bundle of kind `recommender`: hashes, contract, model and golden lists, checked before use."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from common_service_libs.errors import BundleError
from common_service_libs.feature_contract import FeatureContract, parse_contract
from common_service_libs.recommender import NewMovies, Recommender, parse_model
from common_service_libs.release_bundle import FEATURE_SERVICE, GOLDEN, Manifest, verify

KIND = "recommender"
SCORE_TOLERANCE = 1e-4
"""Scores are sums in float32 in an order that hangs on the machine; lists may differ only within this."""


class GoldenList(msgspec.Struct, frozen=True):
    """A request and the list that every loader must answer it with, best first."""

    name: str
    history: list[int]
    movie_ids: list[int]
    scores: list[float]
    k: int
    exclude_seen: bool
    new_movies: list[dict[str, float | int | None]] = []


@dataclass(frozen=True)
class RecommenderBundle:
    """A loaded, verified bundle; `sha256` is its identity. A recommender has no thresholds."""

    sha256: str
    manifest: Manifest
    contract: FeatureContract
    model: Recommender
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the contract's vector, in order."""
        return self.contract.feature_names


def load_recommender(
    folder: Path, *, model_name: str, feature_service: str, expected_sha256: str | None = None
) -> RecommenderBundle:
    """Verify and load the bundle in `folder`, and let it reproduce its golden lists.

    Raises BundleError (or ContractError) if the bundle is altered, is of another model, kind or feature
    service, contradicts itself, or gives other lists than training did.
    """
    manifest, contents, sha256 = verify(folder)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise BundleError("the bundle is not the one that was registered")
    if (manifest.model_name, manifest.model_kind) != (model_name, KIND):
        raise BundleError(
            f"a bundle of {manifest.model_name} ({manifest.model_kind}), not of {model_name} ({KIND})"
        )
    if missing := sorted({FEATURE_SERVICE, GOLDEN, manifest.model_file}.difference(contents)):
        raise BundleError(f"the manifest does not list {missing}")
    try:
        contract = parse_contract(msgspec.json.decode(contents[FEATURE_SERVICE]))
        golden = msgspec.json.decode(contents[GOLDEN], type=tuple[GoldenList, ...])
    except msgspec.DecodeError as error:
        raise BundleError(f"the bundle cannot be read: {error}") from None
    if {manifest.feature_service, contract.name} != {feature_service}:
        raise BundleError(
            f"a bundle on {manifest.feature_service} ({contract.name}), not on {feature_service}"
        )
    model = parse_model(contents[manifest.model_file])
    if unknown := sorted(set(model.parameters.content_features) - set(contract.feature_names)):
        raise BundleError(f"the model reads features that its feature service lacks: {unknown}")
    _require_golden(model, golden)
    return RecommenderBundle(sha256, manifest, contract, model)


def _require_golden(model: Recommender, golden: tuple[GoldenList, ...]) -> None:
    if not golden:
        raise BundleError(f"{GOLDEN} holds no lists")
    for expected in golden:
        new_movies = new_movies_of(model, expected.new_movies) if expected.new_movies else None
        found = model.rank(
            expected.history, exclude_seen=expected.exclude_seen, new_movies=new_movies, limit=expected.k
        )
        if problem := difference(
            expected.movie_ids, expected.scores, found.movie_ids.tolist(), found.scores.tolist()
        ):
            raise BundleError(f"golden list {expected.name!r}: {problem}")


def new_movies_of(model: Recommender, rows: list[dict[str, Any]]) -> NewMovies:
    """Return rows of `movie_id` and content features as new movies; those the catalogue has are left out."""
    fresh = [row for row in rows if not model.knows(int(row["movie_id"]))]
    names = model.parameters.content_features
    try:
        content = model.content_of([[row[name] for name in names] for row in fresh])
    except KeyError as error:
        raise BundleError(f"a new movie has no {error.args[0]}") from None
    return NewMovies(np.array([int(row["movie_id"]) for row in fresh], dtype=np.int64), content)


def difference(
    wanted_ids: list[int], wanted_scores: list[float], found_ids: list[int], found_scores: list[float]
) -> str:
    """Say how a list differs from the one wanted; movies may change places only where scores are equal."""
    if len(found_ids) != len(wanted_ids):
        return f"expected {len(wanted_ids)} movies, got {len(found_ids)}"
    for place, (wanted, found) in enumerate(zip(wanted_scores, found_scores, strict=True), start=1):
        if not abs(wanted - found) <= SCORE_TOLERANCE:
            return f"place {place}: expected score {wanted}, got {found}"
    given = dict(zip(found_ids, found_scores, strict=True))
    last = wanted_scores[-1] if wanted_scores else 0.0
    for movie, score in zip(wanted_ids, wanted_scores, strict=True):
        if movie not in given and score - last > SCORE_TOLERANCE:
            return f"movie {movie} is missing"
        if movie in given and abs(given[movie] - score) > SCORE_TOLERANCE:
            return f"movie {movie}: expected score {score}, got {given[movie]}"
    return ""
