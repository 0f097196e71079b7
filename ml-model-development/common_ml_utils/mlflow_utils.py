"""MLflow as this root uses it: runs, the registry of release bundles, and aliases.

A model version holds the bundle under `artifacts/bundle/`. Aliases: `staging` (the challenger just trained),
`champion` (in production), `previous` (the champion before it).
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import requests

from common_ml_utils.data_schemas.training_data_contract import FeatureServiceContract
from common_ml_utils.errors import RegistryError, first_line
from common_ml_utils.release_bundle import ReleaseBundle

STAGING = "staging"
CHAMPION = "champion"
PREVIOUS = "previous"
BUNDLE_FOLDER = "bundle"
BUNDLE_IN_MODEL = f"artifacts/{BUNDLE_FOLDER}"
PACKAGE = Path(__file__).parent
SCORING_MODULES = (
    "__init__.py",
    "errors.py",
    "native_models.py",
    "preprocessing.py",
    "release_bundle.py",
    "data_schemas/__init__.py",
    "data_schemas/training_data_contract.py",
)
SCORING_REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "xgboost": ("xgboost-cpu", "numpy", "pandas", "pydantic"),
    "lightgbm": ("lightgbm", "numpy", "pandas", "pydantic"),
}


@dataclass(frozen=True)
class RegisteredBundle:
    """A model version and the bundle it holds, verified against the version's tag."""

    model_name: str
    version: int
    bundle: ReleaseBundle


@dataclass(frozen=True)
class TrainingRun:
    """What a run records beside the bundle."""

    experiment: str
    run_name: str
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    figures: Mapping[str, bytes]


class ModelRegistry:
    """The tracking server and its registry; every failure to reach it is a RegistryError."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._client: Any = None

    def check_reachable(self) -> None:
        """Raise RegistryError within seconds when the server does not answer, before long work begins."""
        if not self.tracking_uri.startswith(("http://", "https://")):
            return
        try:
            answer = requests.get(f"{self.tracking_uri.rstrip('/')}/health", timeout=5)
            answer.raise_for_status()
        except requests.RequestException as error:
            kind = type(error).__name__
            raise RegistryError(
                f"the model registry at {self.tracking_uri} does not answer ({kind})"
            ) from error

    def version_of(self, model_name: str, alias: str) -> int | None:
        """Return the version an alias points to, or None when there is no such model or alias."""
        from mlflow.exceptions import MlflowException

        with self._translated() as client:
            try:
                return int(client.get_model_version_by_alias(model_name, alias).version)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def load(self, model_name: str, alias: str) -> RegisteredBundle | None:
        """Download and verify the bundle behind an alias, or return None when the alias does not exist."""
        version = self.version_of(model_name, alias)
        return None if version is None else self.load_version(model_name, version)

    def load_version(self, model_name: str, version: int) -> RegisteredBundle:
        """Download a version's bundle and verify it against the tag `bundle_sha256`."""
        import mlflow

        with self._translated() as client, tempfile.TemporaryDirectory() as folder:
            tags = client.get_model_version(model_name, str(version)).tags
            expected = tags.get("bundle_sha256")
            if expected is None:
                raise RegistryError(f"{model_name} version {version} carries no tag bundle_sha256")
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{model_name}/{version}",
                dst_path=folder,
                tracking_uri=self.tracking_uri,
            )
            bundle = ReleaseBundle.load(Path(path) / BUNDLE_IN_MODEL, expected)
        return RegisteredBundle(model_name, version, bundle)

    def register(self, bundle_folder: Path, bundle: ReleaseBundle, run: TrainingRun) -> int:
        """Log the run with its bundle, register a model version with tags and set the alias `staging` last.

        The version is downloaded and verified before the alias moves, so `staging` never names a broken one.
        """
        import mlflow

        name = bundle.manifest.model_name
        tags = {
            "bundle_sha256": bundle.sha256,
            "feature_service": bundle.manifest.feature_service,
            "git_commit": bundle.manifest.git_commit,
            "data_version": bundle.manifest.data_version,
        }
        with self._translated() as client:
            mlflow.set_experiment(run.experiment)
            with mlflow.start_run(run_name=run.run_name, tags={**run.tags, **tags}):
                mlflow.log_params(dict(run.parameters))
                mlflow.log_metrics(dict(run.metrics))
                _log_figures(run.figures)
                model_uri = _log_bundle(bundle_folder, bundle)
            version = int(mlflow.register_model(model_uri, name, tags=tags).version)
            self.load_version(name, version)
            client.set_registered_model_alias(name, STAGING, str(version))
        return version

    def promote(self, model_name: str, version: int) -> None:
        """Move `champion` to the version; the old champion becomes `previous` first."""
        old = self.version_of(model_name, CHAMPION)
        with self._translated() as client:
            if old is not None and old != version:
                client.set_registered_model_alias(model_name, PREVIOUS, str(old))
            client.set_registered_model_alias(model_name, CHAMPION, str(version))

    @contextmanager
    def _translated(self) -> Iterator[Any]:
        """Give MLflow's client for this server; its failures become RegistryError."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(self.tracking_uri)
        if self._client is None:
            self._client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        try:
            yield self._client
        except (MlflowException, requests.RequestException) as error:
            raise RegistryError(
                f"the model registry at {self.tracking_uri} failed: {first_line(error)}"
            ) from error


def git_commit(folder: Path) -> str:
    """Return the commit of the code (`GIT_COMMIT` in an image), with `-dirty` when files differ from it.

    `unknown` where there is neither a variable nor a repository.
    """
    if commit := os.environ.get("GIT_COMMIT"):
        return commit
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def signature_of(service: FeatureServiceContract) -> Any:
    """Return the MLflow signature of a feature service: doubles and strings in, one double out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    columns: list[Any] = [
        ColSpec("string" if f.is_categorical else "double", f.name) for f in service.features
    ]
    return ModelSignature(inputs=Schema(columns), outputs=Schema([ColSpec("double", "score")]))


def _log_bundle(bundle_folder: Path, bundle: ReleaseBundle) -> str:
    import mlflow

    example = pd.DataFrame([row.features for row in bundle.golden[:3]], columns=bundle.preprocessing.names)
    requirements = [f"mlflow=={importlib.metadata.version('mlflow')}"] + [
        f"{package}=={importlib.metadata.version(package)}"
        for package in SCORING_REQUIREMENTS[bundle.manifest.model_kind]
    ]
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / BUNDLE_FOLDER
        shutil.copytree(bundle_folder, artifact)
        code = Path(folder) / PACKAGE.name
        for module in SCORING_MODULES:
            (code / module).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PACKAGE / module, code / module)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PACKAGE / "bundle_model.py"),
            code_paths=[str(code)],
            artifacts={BUNDLE_FOLDER: str(artifact)},
            signature=signature_of(bundle.contract.service),
            input_example=example,
            pip_requirements=requirements,
        )
    return info.model_uri


def _log_figures(figures: Mapping[str, bytes]) -> None:
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        for name, content in figures.items():
            (Path(folder) / f"{name}.png").write_bytes(content)
        if figures:
            mlflow.log_artifacts(folder, "plots")


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(  # noqa: S603 (fixed command, no shell)
        ["git", "-C", str(folder), *arguments],  # noqa: S607 (git of the PATH)
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    ).stdout
