"""The champion's release bundle, as far as monitoring needs it: reference, contract, holdout metrics.

Format: docs/architecture.md, "Release bundle". No file is parsed before its hash is checked, and the bytes
parsed are the bytes that were hashed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advanced_monitoring_scripts.distribution_drift import CategoricalReference, NumericReference, Reference
from advanced_monitoring_scripts.errors import BundleError, MissingInputError, UnreachableError

CHAMPION = "champion"
SCORE = "score"
_MANIFEST = "manifest.json"
_REFERENCE = "reference.json"
_CONTRACT = "feature_service.json"
_HOLDOUT_METRICS = ("auc_roc", "average_precision")


@dataclass(frozen=True)
class ChampionBundle:
    """What the champion was trained on and how good it was; `references` holds each feature and `score`."""

    model_name: str
    model_version: int
    sha256: str
    training: dict[str, Any]
    references: dict[str, Reference]
    calendar_features: frozenset[str]
    group_key: str
    """The entity whose rows belong together (the customer of a transaction)."""
    holdout_metrics: dict[str, float]

    @property
    def feature_names(self) -> list[str]:
        """The features, in the model's order."""
        return [name for name in self.references if name != SCORE]


def fetch_champion(tracking_uri: str, model_name: str) -> ChampionBundle:
    """Download and verify the champion's bundle; raises MonitoringError."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Imported late: it costs seconds and reads the settings above.
    import mlflow  # noqa: PLC0415
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    try:
        version = client.get_model_version_by_alias(model_name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise MissingInputError(f"{model_name} has no champion: train it and run the gate") from None
        raise UnreachableError(f"the registry at {tracking_uri} failed: {_line(error)}") from None
    try:
        metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
        with tempfile.TemporaryDirectory() as folder:
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{model_name}/{version.version}",
                dst_path=folder,
                tracking_uri=tracking_uri,
            )
            contents, sha256 = verify_bundle(find_bundle(Path(folder)), version.tags.get("bundle_sha256"))
    except (MlflowException, OSError) as error:
        raise UnreachableError(
            f"the bundle of {model_name} {version.version} can't be downloaded: {_line(error)}"
        ) from None
    return parse_bundle(contents, sha256, model_name, int(version.version), metrics)


def find_bundle(folder: Path) -> Path:
    """Return the one folder `bundle` beneath `folder` that holds a manifest; raises BundleError otherwise."""
    found = sorted(path.parent for path in folder.rglob(f"bundle/{_MANIFEST}"))
    if len(found) != 1:
        raise BundleError(f"{len(found)} bundles in the artifacts of the model version, one is needed")
    return found[0]


def verify_bundle(folder: Path, expected_sha256: str | None) -> tuple[dict[str, bytes], str]:
    """Check every hash and return the files' contents (the manifest's too) and the bundle's identity."""
    manifest_bytes = _read(folder / _MANIFEST)
    identity = hashlib.sha256(manifest_bytes).hexdigest()
    if expected_sha256 is None:
        raise BundleError(
            "the model version carries no tag bundle_sha256: it can't be told from an altered one"
        )
    if identity != expected_sha256:
        raise BundleError(f"{_MANIFEST} was altered: SHA-256 {identity}, registered {expected_sha256}")
    files = _object(_MANIFEST, manifest_bytes).get("files")
    if not isinstance(files, dict) or not files:
        raise BundleError(f"{_MANIFEST} lists no files")
    present = {path.name for path in folder.iterdir()} - {_MANIFEST}
    if different := sorted(present ^ set(files)):
        raise BundleError(f"the manifest and the folder differ in {different}")
    contents = {_MANIFEST: manifest_bytes}
    for name, expected in files.items():
        contents[name] = _read(folder / name)
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise BundleError(f"{name} was altered: its SHA-256 is not the manifest's")
    return contents, identity


def parse_bundle(
    contents: dict[str, bytes], sha256: str, model_name: str, model_version: int, metrics: dict[str, float]
) -> ChampionBundle:
    """Read what monitoring needs from verified contents; raises BundleError when it contradicts itself."""
    manifest = _object(_MANIFEST, contents[_MANIFEST])
    if manifest.get("format_version") != 1:
        raise BundleError(f"format version {manifest.get('format_version')!r}, this job reads 1")
    if manifest.get("model_name") != model_name:
        raise BundleError(f"a bundle of {manifest.get('model_name')!r}, not of {model_name}")
    if missing := {_REFERENCE, _CONTRACT} - contents.keys():
        raise BundleError(f"the bundle lacks {sorted(missing)}")
    contract = _object(_CONTRACT, contents[_CONTRACT])
    statistics = _object(_REFERENCE, contents[_REFERENCE])
    try:
        names = [feature["name"] for feature in contract["features"]]
        calendar = calendar_features(contract)
        group_key = str(contract["entities"][0]["join_key"])
    except (KeyError, TypeError, IndexError, SyntaxError) as error:
        raise BundleError(f"{_CONTRACT} is no feature service contract: {error!r}") from None
    if set(statistics) != {*names, SCORE}:
        raise BundleError(f"{_REFERENCE} and {_CONTRACT} name different features")
    return ChampionBundle(
        model_name=model_name,
        model_version=model_version,
        sha256=sha256,
        training=dict(manifest.get("training") or {}),
        references={name: parse_reference(name, statistics[name]) for name in [*names, SCORE]},
        calendar_features=calendar,
        group_key=group_key,
        holdout_metrics={name: metrics[name] for name in _HOLDOUT_METRICS if name in metrics},
    )


def parse_reference(name: str, statistics: Any) -> Reference:
    """Read one entry of `reference.json`; raises BundleError."""
    try:
        counts = np.asarray(statistics["counts"], dtype=np.float64)
        nulls = int(statistics["null_count"])
        if "categories" in statistics:
            categories = tuple(statistics["categories"])
            expected, reference = len(categories), CategoricalReference(categories, counts, nulls)
        else:
            edges = np.asarray(statistics["edges"], dtype=np.float64)
            if not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
                raise BundleError(f"{_REFERENCE}: the edges of {name} do not increase")
            expected, reference = len(edges) + 1, NumericReference(edges, counts, nulls)  # type: ignore[assignment]
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{_REFERENCE}: the statistics of {name} can't be read: {error!r}") from None
    if counts.shape != (expected,) or not (np.isfinite(counts) & (counts >= 0)).all() or nulls < 0:
        raise BundleError(f"{_REFERENCE}: the counts of {name} do not fit its bins")
    return reference


def calendar_features(contract: dict[str, Any]) -> frozenset[str]:
    """Return the features whose expression reads nothing but the time of the request, such as "is a weekend".

    >>> calendar_features({"request": [{"name": "t", "type": "unix_timestamp"}], "on_demand": {"features": [
    ...     {"name": "night", "expression": "hour(t) <= 6"}, {"name": "n", "expression": "a + day(t)"}]}})
    frozenset({'night'})
    """
    clocks = {field["name"] for field in contract.get("request", ()) if field["type"] == "unix_timestamp"}
    found = set()
    for feature in (contract.get("on_demand") or {}).get("features", ()):
        tree = ast.parse(feature["expression"], mode="eval")
        functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        names = {
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in functions
        }
        if names and names <= clocks:
            found.add(feature["name"])
    return frozenset(found)


def _object(name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise BundleError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{name} is not a JSON object")
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path.name} can't be read: {error.strerror}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
