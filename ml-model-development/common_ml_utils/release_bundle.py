"""The release bundle: everything a score needs, in plain files under a manifest of SHA-256 hashes.

Format: docs/architecture.md, "Release bundle". The same contents give the same bytes.
Loading checks every hash before it parses a file, then reproduces the golden rows. Nothing here is pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_serializer,
    model_validator,
)

from common_ml_utils.data_schemas.training_data_contract import FeatureServiceContract, PublishedContract
from common_ml_utils.errors import BundleError, DataError
from common_ml_utils.native_models import NativeModel, load_native_model, require_model_format
from common_ml_utils.preprocessing import FeatureValue, Preprocessing, RowEncoder

BundleKind = Literal["xgboost", "lightgbm", "recommender"]
MANIFEST = "manifest.json"
PREPROCESSING = "preprocessing.json"
FEATURE_SERVICE = "feature_service.json"
THRESHOLDS = "thresholds.json"
REFERENCE = "reference.json"
GOLDEN = "golden.json"
REASON_CODES = "reason_codes.json"
MODEL_FILES: dict[str, str] = {"xgboost": "model.ubj", "lightgbm": "model.txt", "recommender": "model.npz"}
CLASSIFIER_FILES = (PREPROCESSING, FEATURE_SERVICE, THRESHOLDS, REFERENCE, GOLDEN, REASON_CODES)
# Beside the model file; a bundle holds exactly these.
REQUIRED_FILES: dict[str, tuple[str, ...]] = {
    "xgboost": CLASSIFIER_FILES,
    "lightgbm": CLASSIFIER_FILES,
    "recommender": (FEATURE_SERVICE, REFERENCE, GOLDEN),
}
# What a model version needs to score without this root: files of this package, and distributions.
SCORING_MODULES = (
    "__init__.py",
    "errors.py",
    "fast_trees.py",
    "native_models.py",
    "preprocessing.py",
    "release_bundle.py",
    "data_schemas/__init__.py",
    "data_schemas/training_data_contract.py",
)
SCORING_REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "xgboost": ("xgboost-cpu", "numba", "numpy", "pandas", "pydantic"),
    "lightgbm": ("lightgbm", "numba", "numpy", "pandas", "pydantic"),
}
MAXIMUM_FILE_BYTES = 512 * 1024 * 1024
GOLDEN_TOLERANCE = 1e-6
MINIMUM_GOLDEN_ROWS = 20


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0, le=1)]


class TrainingInterval(BaseModel):
    """What the model saw and what it was measured on; [start, end) and [holdout_start, holdout_end), UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: datetime
    end: datetime
    holdout_start: datetime
    holdout_end: datetime
    rows: int
    positives: int

    @field_serializer("start", "end", "holdout_start", "holdout_end")
    def _iso(self, value: datetime) -> str:
        return value.isoformat()


class ReasonCode(BaseModel):
    """What a feature says when it raises the score: a stable code in plain English. Several may share it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str = Field(pattern=r"^[A-Z][A-Z0-9_]*$", max_length=64)
    text: str = Field(min_length=1, max_length=200)


class Manifest(BaseModel):
    """The bundle's table of contents; the hash of its file is the bundle's identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    model_name: str
    model_kind: BundleKind
    model_file: str
    feature_service: str
    label_policy_version: str | int
    training: TrainingInterval
    git_commit: str
    data_version: str
    files: dict[str, Sha256]

    @model_validator(mode="after")
    def _files_are_complete_and_flat(self) -> Manifest:
        if any(Path(name).name != name for name in (self.model_file, *self.files)):
            raise ValueError("file names must have no folder part")
        if self.model_file != MODEL_FILES[self.model_kind]:
            raise ValueError(f"the model file of {self.model_kind} is {MODEL_FILES[self.model_kind]}")
        needed = {self.model_file, *REQUIRED_FILES[self.model_kind]}
        if set(self.files) != needed:
            raise ValueError(f"files must be exactly {sorted(needed)}, not {sorted(self.files)}")
        return self


@dataclass(frozen=True)
class GoldenRow:
    """A feature vector and the score every loader must give it."""

    features: dict[str, FeatureValue]
    score: Probability


@dataclass(frozen=True)
class BundleContents:
    """What goes into a bundle, before it is written."""

    model_name: str
    model: NativeModel
    contract: PublishedContract
    preprocessing: Preprocessing
    thresholds: dict[str, float]
    reference: dict[str, dict[str, Any]]
    golden: list[GoldenRow]
    reason_codes: Mapping[str, ReasonCode]
    training: TrainingInterval
    label_policy_version: str | int
    git_commit: str
    data_version: str


@dataclass(frozen=True)
class Packaging:
    """How MLflow holds a bundle: the class that loads it, and what that class needs.

    `python_model` and `modules` are files of this package; `requirements` are distributions, pinned to the
    installed versions when the bundle is registered.
    """

    python_model: str
    modules: tuple[str, ...]
    requirements: tuple[str, ...]
    signature: Any
    input_example: pd.DataFrame


def write_bundle(contents: BundleContents, folder: Path) -> str:
    """Write the bundle into an empty or new folder and return its identity, the manifest's SHA-256."""
    if len(contents.golden) < MINIMUM_GOLDEN_ROWS:
        raise BundleError(f"{len(contents.golden)} golden rows, at least {MINIMUM_GOLDEN_ROWS} are needed")
    require_reason_codes(contents.reason_codes, contents.preprocessing.names)
    model_file = MODEL_FILES[contents.model.kind]
    files = {
        model_file: contents.model.to_bytes(),
        PREPROCESSING: json_bytes(contents.preprocessing.model_dump(mode="json", exclude_none=True)),
        FEATURE_SERVICE: contents.contract.text.encode(),
        THRESHOLDS: json_bytes(contents.thresholds),
        REFERENCE: json_bytes(contents.reference),
        GOLDEN: json_bytes([{"features": row.features, "score": row.score} for row in contents.golden]),
        REASON_CODES: json_bytes({name: code.model_dump() for name, code in contents.reason_codes.items()}),
    }
    manifest = Manifest(
        model_name=contents.model_name,
        model_kind=contents.model.kind,
        model_file=model_file,
        feature_service=contents.contract.service.name,
        label_policy_version=contents.label_policy_version,
        training=contents.training,
        git_commit=contents.git_commit,
        data_version=contents.data_version,
        files={name: sha256_of(content) for name, content in files.items()},
    )
    return write_files(folder, manifest, files)


def write_files(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> str:
    """Write files and manifest into an empty or new folder and return the manifest's SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BundleError(f"{folder} is not empty")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    content = json_bytes(manifest.model_dump(mode="json"))
    (folder / MANIFEST).write_bytes(content)
    return sha256_of(content)


def read_reason_codes(path: Path, features: Sequence[str]) -> dict[str, ReasonCode]:
    """Return feature -> reason code for a vector out of a project's table, which may hold more.

    Raises BundleError for a table that can't be read; what it lacks is found out when a bundle is written.
    """
    try:
        codes = parse_reason_codes(path.read_bytes())
    except OSError as error:
        raise BundleError(f"the reason codes can't be read: {error}") from error
    return {name: codes[name] for name in features if name in codes}


def parse_reason_codes(content: bytes) -> dict[str, ReasonCode]:
    """Return feature -> reason code; raises BundleError for a code that is not UPPER_SNAKE or has no text."""
    try:
        return TypeAdapter(dict[str, ReasonCode]).validate_json(content)
    except ValidationError as error:
        raise BundleError(f"{REASON_CODES} can't be read: {error}") from error


def require_reason_codes(codes: Mapping[str, ReasonCode], features: Sequence[str]) -> None:
    """Raise BundleError unless exactly the features have a code, and a code shared has one text."""
    if different := sorted(set(codes).symmetric_difference(features)):
        raise BundleError(f"{REASON_CODES} and the feature vector differ in {different}")
    texts: dict[str, str] = {}
    for reason in codes.values():
        if texts.setdefault(reason.code, reason.text) != reason.text:
            raise BundleError(f"{REASON_CODES}: {reason.code} has two texts")


def verify_bundle(folder: Path, expected_sha256: str | None = None) -> tuple[Manifest, dict[str, bytes], str]:
    """Check the manifest's own hash and every file's, and return manifest, contents and identity.

    Only the manifest is parsed. The contents returned are the bytes that were hashed, so a file that changes
    afterwards can't slip in. Raises BundleError that names the first thing wrong.
    """
    manifest_bytes = _read(folder / MANIFEST)
    identity = sha256_of(manifest_bytes)
    if expected_sha256 is not None and identity != expected_sha256:
        raise BundleError(f"{MANIFEST} has SHA-256 {identity}, the registry says {expected_sha256}")
    try:
        manifest = Manifest.model_validate_json(manifest_bytes)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST} can't be read: {error}") from error
    unlisted = sorted({path.name for path in folder.iterdir()} - {MANIFEST, *manifest.files})
    if unlisted:
        raise BundleError(f"files that the manifest does not list: {unlisted}")
    contents: dict[str, bytes] = {}
    for name, expected in manifest.files.items():
        contents[name] = _read(folder / name)
        if sha256_of(contents[name]) != expected:
            raise BundleError(f"{name} was altered: its SHA-256 is not the manifest's")
    require_model_format(manifest.model_kind, contents[manifest.model_file])
    return manifest, contents, identity


def _read(path: Path) -> bytes:
    """Read a regular file of at most MAXIMUM_FILE_BYTES; links, pipes and devices are refused unopened."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path.name} is not a regular file")
        if status.st_size > MAXIMUM_FILE_BYTES:
            raise BundleError(f"{path.name} has {status.st_size} bytes, at most {MAXIMUM_FILE_BYTES} may be")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path.name} can't be read in {path.parent}: {error.strerror}") from error


def parse_json(content: bytes, kind: Any) -> Any:
    """Parse JSON into a type; raises ValueError for another shape, and for NaN and infinities."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number of JSON")

    try:
        json.loads(content, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return TypeAdapter(kind).validate_json(content)


class ReleaseBundle:
    """A loaded, verified bundle with a fast one-row path and a batch path."""

    def __init__(self, manifest: Manifest, contents: Mapping[str, bytes], sha256: str) -> None:
        if manifest.model_kind == "recommender":
            raise BundleError(f"a bundle of kind {manifest.model_kind} is not one of a classifier")
        self.manifest = manifest
        self.sha256 = sha256
        try:
            self.contract = PublishedContract.parse(contents[FEATURE_SERVICE].decode())
            self.preprocessing = Preprocessing.model_validate_json(contents[PREPROCESSING])
            self.thresholds: dict[str, float] = parse_json(contents[THRESHOLDS], dict[str, Probability])
            self.reference: dict[str, dict[str, Any]] = parse_json(
                contents[REFERENCE], dict[str, dict[str, Any]]
            )
            self.golden: list[GoldenRow] = parse_json(contents[GOLDEN], list[GoldenRow])
        except (DataError, ValueError) as error:
            raise BundleError(f"the bundle can't be read: {error}") from error
        from common_ml_utils.fast_trees import forest_of  # loads numba: for those who score, not for all

        self.model = load_native_model(manifest.model_kind, contents[manifest.model_file])
        if manifest.feature_service != self.contract.service.name:
            raise BundleError(f"{MANIFEST} and {FEATURE_SERVICE} name different feature services")
        if self.preprocessing.names != self.contract.service.feature_names:
            raise BundleError("preprocessing and feature service name different vectors")
        self.forest = forest_of(self.model)
        if (taken := self.forest.features) != (given := len(self.preprocessing.names)):
            raise BundleError(f"the model takes {taken} features, the vector has {given}")
        self._encode = RowEncoder(self.preprocessing).encode
        self.reason_codes = parse_reason_codes(contents[REASON_CODES])
        require_reason_codes(self.reason_codes, self.preprocessing.names)

    @classmethod
    def load(cls, folder: Path, expected_sha256: str | None = None) -> ReleaseBundle:
        """Verify, parse and try the bundle; raises BundleError when it is not exactly what was released."""
        bundle = cls(*verify_bundle(folder, expected_sha256))
        bundle.check_golden_rows()
        return bundle

    def score_row(self, features: Mapping[str, FeatureValue]) -> float:
        """Return P(positive) of one feature vector: microseconds, no data frame, safe between threads."""
        return self.forest.score(self._encode(features))

    def score_encoded(self, row: np.ndarray) -> float:
        """Return P(positive) of one encoded vector: float64, shape (features,), null as NaN."""
        return self.forest.score(row)

    def score_frame(self, frame: pd.DataFrame) -> np.ndarray:
        """Return P(positive) for each row, in the frame's order."""
        return self.forest.scores(self.preprocessing.transform(frame))

    def packaging(self) -> Packaging:
        """Return how MLflow holds this bundle."""
        return Packaging(
            python_model="bundle_model.py",
            modules=SCORING_MODULES,
            requirements=SCORING_REQUIREMENTS[self.manifest.model_kind],
            signature=signature_of(self.contract.service),
            input_example=pd.DataFrame(
                [row.features for row in self.golden[:3]], columns=self.preprocessing.names
            ),
        )

    def check_golden_rows(self) -> None:
        """Raise BundleError unless both paths reproduce every golden score within 1e-6.

        The scores were computed by the model's own library when the bundle was written, so they judge the
        compiled loops as well.
        """
        if len(self.golden) < MINIMUM_GOLDEN_ROWS:
            raise BundleError(f"{len(self.golden)} golden rows, at least {MINIMUM_GOLDEN_ROWS} are needed")
        names = self.preprocessing.names
        for i, row in enumerate(self.golden):
            if different := sorted(set(row.features).symmetric_difference(names)):
                raise BundleError(f"golden row {i} and the feature vector differ in {different}")
        batch = self.score_frame(
            pd.DataFrame([row.features for row in self.golden], columns=names, dtype=object)
        )
        for i, row in enumerate(self.golden):
            for path, score in (("one-row", self.score_row(row.features)), ("batch", float(batch[i]))):
                if not math.isclose(score, row.score, rel_tol=0, abs_tol=GOLDEN_TOLERANCE):
                    raise BundleError(f"golden row {i}, {path} path: expected {row.score}, got {score}")


def signature_of(service: FeatureServiceContract) -> Any:
    """Return the MLflow signature of a feature service: doubles and strings in, one double out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    columns: list[Any] = [
        ColSpec("string" if f.is_categorical else "double", f.name) for f in service.features
    ]
    return ModelSignature(inputs=Schema(columns), outputs=Schema([ColSpec("double", "score")]))


def golden_rows(
    frame: pd.DataFrame, preprocessing: Preprocessing, model: NativeModel, count: int = 32
) -> list[GoldenRow]:
    """Pick rows over the whole range of scores, then null, all-null and unknown-category cases.

    A null case is made for each feature, so a loader that reads a null as zero is found out.
    """
    by_score = np.argsort(model.scores(preprocessing.transform(frame)), kind="stable")
    picked = by_score[np.unique(np.linspace(0, len(by_score) - 1, count).astype(int))]
    vectors = [_vector(frame.iloc[position], preprocessing) for position in picked]
    highest = vectors[-1]
    vectors += [{**highest, name: None} for name in preprocessing.names]
    vectors.append(dict.fromkeys(preprocessing.names))
    vectors += [
        {**highest, feature.name: "a category never seen"}
        for feature in preprocessing.features
        if feature.kind == "categorical"
    ]
    return [
        GoldenRow(vector, float(model.scores(preprocessing.transform_row(vector))[0])) for vector in vectors
    ]


def _vector(row: pd.Series, preprocessing: Preprocessing) -> dict[str, FeatureValue]:
    values = {name: row[name] for name in preprocessing.names}
    return {name: None if pd.isna(value) else _plain(value) for name, value in values.items()}


def _plain(value: Any) -> FeatureValue:
    return value if isinstance(value, str) else float(value)


def json_bytes(document: Any) -> bytes:
    """Return a document as canonical JSON: sorted keys, no NaN; equal documents give equal bytes."""
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
