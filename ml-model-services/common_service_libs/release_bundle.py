"""A release bundle: model, preprocessing, contract and thresholds, checked before any of it is used."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from common_service_libs.errors import BundleError
from common_service_libs.feast_layout import FeatureValue
from common_service_libs.feature_contract import FeatureContract, parse_contract
from common_service_libs.scorers import Scorer, load_scorer

MANIFEST = "manifest.json"
FEATURE_SERVICE = "feature_service.json"
PREPROCESSING = "preprocessing.json"
THRESHOLDS = "thresholds.json"
GOLDEN = "golden.json"
FORMAT_VERSION = 1
GOLDEN_TOLERANCE = 1e-6


class Manifest(msgspec.Struct, frozen=True):
    """What the bundle is, where it comes from, and the SHA-256 of every other file in it."""

    format_version: int
    model_name: str
    model_kind: str
    model_file: str
    feature_service: str
    label_policy_version: int | str
    training: dict[str, Any]
    git_commit: str
    data_version: str
    files: dict[str, str]


class PreprocessedFeature(msgspec.Struct, frozen=True):
    """How one feature becomes a number: as it is, or as the index of its category."""

    name: str
    kind: Literal["numeric", "categorical"]
    categories: tuple[str | float, ...] = ()


class Preprocessing(msgspec.Struct, frozen=True):
    """How a vector becomes a row of numbers."""

    format_version: int
    features: tuple[PreprocessedFeature, ...]


class GoldenRow(msgspec.Struct, frozen=True):
    """Features with the score that training computed for them."""

    features: dict[str, Any]
    score: float


class Encoder:
    """Turns the contract's vector into the model's row; unknown categories and null become NaN."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._categories: tuple[dict[str | float, float] | None, ...] = tuple(
            None
            if feature.kind == "numeric"
            else {category: float(index) for index, category in enumerate(feature.categories)}
            for feature in preprocessing.features
        )

    def encode(self, values: Sequence[FeatureValue]) -> list[float]:
        """Return one number a feature."""
        row = []
        for value, categories in zip(values, self._categories, strict=True):
            if categories is not None:
                row.append(math.nan if value is None else categories.get(value, math.nan))
            else:
                row.append(value if isinstance(value, float) else math.nan)
        return row


@dataclass(frozen=True)
class Bundle:
    """A loaded, verified bundle; `sha256` is its identity."""

    sha256: str
    manifest: Manifest
    contract: FeatureContract
    thresholds: Mapping[str, float]
    encoder: Encoder
    scorer: Scorer

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the vector, in order."""
        return self.contract.feature_names

    def score(self, values: Sequence[FeatureValue]) -> float:
        """Return P(positive) of a vector in the contract's order."""
        return self.scorer.score(self.encoder.encode(values))

    def contributions(self, values: Sequence[FeatureValue]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds."""
        return self.scorer.contributions(self.encoder.encode(values))


def find_bundle(folder: Path) -> Path:
    """Return the one folder beneath `folder` that holds a bundle's manifest; raises BundleError otherwise."""
    found = sorted(path.parent for path in folder.rglob(f"bundle/{MANIFEST}"))
    if len(found) != 1:
        raise BundleError(f"{len(found)} bundles in the artifacts of the model version, one is needed")
    return found[0]


def verify(folder: Path) -> tuple[Manifest, dict[str, bytes], str]:
    """Check every hash of a bundle; return its manifest, the bytes that were hashed, and its identity.

    Only the manifest is parsed. Raises BundleError for a file that is missing, added or altered.
    """
    raw_manifest = _read(folder / MANIFEST)
    manifest = _parse(MANIFEST, raw_manifest, Manifest)
    if manifest.format_version != FORMAT_VERSION:
        raise BundleError(f"format version {manifest.format_version}, this service reads {FORMAT_VERSION}")
    present = {entry.name for entry in folder.iterdir()} - {MANIFEST}
    if different := present.symmetric_difference(manifest.files):
        raise BundleError(f"the manifest and the folder differ in {sorted(different)}")
    contents = {name: _read(folder / name) for name in manifest.files}
    for name, digest in manifest.files.items():
        if _sha256(contents[name]) != digest:
            raise BundleError(f"{name} does not have the hash of the manifest")
    return manifest, contents, _sha256(raw_manifest)


def load_bundle(
    folder: Path, *, model_name: str, feature_service: str, expected_sha256: str | None = None
) -> Bundle:
    """Verify and load the bundle in `folder`, and let it reproduce its golden rows.

    Raises BundleError (or ContractError) if the bundle is altered, is of another model or feature service,
    contradicts itself, or computes another score than training did.
    """
    manifest, contents, sha256 = verify(folder)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise BundleError("the bundle is not the one that was registered")
    if manifest.model_name != model_name:
        raise BundleError(f"a bundle of {manifest.model_name}, not of {model_name}")
    needed = {FEATURE_SERVICE, PREPROCESSING, THRESHOLDS, GOLDEN, manifest.model_file}
    if missing := sorted(needed.difference(contents)):
        raise BundleError(f"the manifest does not list {missing}")
    contract = parse_contract(_parse(FEATURE_SERVICE, contents[FEATURE_SERVICE], Any))
    preprocessing = _parse(PREPROCESSING, contents[PREPROCESSING], Preprocessing)
    if {manifest.feature_service, contract.name} != {feature_service}:
        raise BundleError(
            f"a bundle on {manifest.feature_service} ({contract.name}), not on {feature_service}"
        )
    if tuple(feature.name for feature in preprocessing.features) != contract.feature_names:
        raise BundleError("preprocessing and contract differ in the features or in their order")
    bundle = Bundle(
        sha256=sha256,
        manifest=manifest,
        contract=contract,
        thresholds=_thresholds(contents),
        encoder=Encoder(preprocessing),
        scorer=load_scorer(manifest.model_kind, contents[manifest.model_file], len(preprocessing.features)),
    )
    _require_golden(bundle, contents)
    return bundle


def read_thresholds(folder: Path) -> Mapping[str, float]:
    """Return the thresholds of a bundle after checking its hashes; raises BundleError."""
    return _thresholds(verify(folder)[1])


def _thresholds(contents: Mapping[str, bytes]) -> Mapping[str, float]:
    thresholds = _parse(THRESHOLDS, contents.get(THRESHOLDS, b""), dict[str, float])
    if outside := sorted(name for name, value in thresholds.items() if not 0.0 <= value <= 1.0):
        raise BundleError(f"thresholds outside of [0, 1]: {outside}")
    return thresholds


def _require_golden(bundle: Bundle, contents: Mapping[str, bytes]) -> None:
    rows = _parse(GOLDEN, contents[GOLDEN], tuple[GoldenRow, ...])
    if not rows:
        raise BundleError(f"{GOLDEN} holds no rows")
    for number, row in enumerate(rows):
        if different := set(bundle.contract.feature_names).symmetric_difference(row.features):
            raise BundleError(f"golden row {number} and the contract differ in {sorted(different)}")
        score = bundle.score(as_values(bundle.contract.feature_names, row.features))
        if not abs(score - row.score) <= GOLDEN_TOLERANCE:
            raise BundleError(f"golden row {number} scores {score!r} here and {row.score!r} in training")


def as_values(names: Sequence[str], features: Mapping[str, Any]) -> list[FeatureValue]:
    """Return features read from JSON as a vector in the order of `names`, every number a float.

    Raises BundleError if one is not there.
    """
    if missing := [name for name in names if name not in features]:
        raise BundleError(f"features not recorded: {missing}")
    return [_as_value(features[name]) for name in names]


def _as_value(value: Any) -> FeatureValue:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return float(value)
    raise BundleError(f"a feature value of type {type(value).__name__}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {error.strerror}") from None


def _parse(name: str, content: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:  # a ValidationError is a DecodeError
        raise BundleError(f"{name}: {error}") from None
