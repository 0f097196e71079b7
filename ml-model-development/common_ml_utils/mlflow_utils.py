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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import requests

from common_ml_utils.errors import RegistryError, first_line
from common_ml_utils.release_bundle import Manifest, Packaging, ReleaseBundle, verify_bundle

STAGING = "staging"
CHAMPION = "champion"
PREVIOUS = "previous"
BUNDLE_FOLDER = "bundle"
BUNDLE_IN_MODEL = f"artifacts/{BUNDLE_FOLDER}"
PACKAGE = Path(__file__).parent


BundleT = TypeVar("BundleT", bound="RegisterableBundle")


class RegisterableBundle(Protocol):
    """What the registry needs of a bundle, whatever kind of model it holds."""

    @property
    def manifest(self) -> Manifest:
        """The table of contents."""

    @property
    def sha256(self) -> str:
        """The identity: the SHA-256 of the manifest's file."""

    def packaging(self) -> Packaging:
        """Return how MLflow holds the bundle."""


@dataclass(frozen=True)
class RegisteredBundle(Generic[BundleT]):
    """A model version and the bundle it holds, verified against the version's tag."""

    model_name: str
    version: int
    bundle: BundleT


@dataclass(frozen=True)
class TrainingRun:
    """What a run records beside the bundle.

    `figures` are PNGs by name, under `plots/`; `documents` are any other artifacts, path -> content, e.g.
    `model_card/model_card.html`. `description` is the note on top of the run's and the version's page,
    `model_description` that of the registered model, both Markdown; `group` is the tag by which runs that
    belong together are found and grouped, `parent_run_id` nests the run under another.
    """

    experiment: str
    run_name: str
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    figures: Mapping[str, bytes]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    description: str = ""
    model_description: str = ""
    group: str = ""
    parent_run_id: str | None = None

    def all_tags(self) -> dict[str, str]:
        """Return the run's tags with group, and description and parent as MLflow's pages read them."""
        own = {
            "group": self.group,
            "mlflow.note.content": self.description,
            "mlflow.parentRunId": self.parent_run_id or "",
        }
        return {**self.tags, **{name: value for name, value in own.items() if value}}


@dataclass(frozen=True)
class VersionRecord:
    """A model version with the run it came from, as the tracking server has them; times are UTC.

    `document` is the content of the run's artifact that was asked for, None where the run has none.
    """

    version: int
    created_at: datetime
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    run_id: str
    run_name: str
    run_tags: Mapping[str, str]
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    document: bytes | None


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

    def champions(self) -> dict[str, int]:
        """Return the version in production of every registered model that has one."""
        with self._translated() as client:
            found, token = [], None
            while True:
                page = client.search_registered_models(max_results=100, page_token=token)
                found += [(each.name, each.aliases.get(CHAMPION)) for each in page]
                token = page.token
                if not token:
                    return {name: int(version) for name, version in found if version is not None}

    def versions(self, model_name: str, last: int, document: str) -> list[VersionRecord]:
        """Return the newest versions of a model, newest first, each with one document of its run.

        Raises RegistryError when there is no such model.
        """
        with self._translated() as client:
            aliases: dict[str, list[str]] = {}
            for alias, number in client.get_registered_model(model_name).aliases.items():
                aliases.setdefault(str(number), []).append(alias)
            found = client.search_model_versions(
                f"name = '{model_name}'", max_results=last, order_by=["version_number DESC"]
            )
            return [
                self._record(client, version, tuple(sorted(aliases.get(str(version.version), []))), document)
                for version in found
            ]

    @staticmethod
    def _record(client: Any, version: Any, aliases: tuple[str, ...], document: str) -> VersionRecord:
        run = client.get_run(version.run_id)
        present = {file.path for file in client.list_artifacts(version.run_id, str(Path(document).parent))}
        content = None
        if document in present:
            with tempfile.TemporaryDirectory() as folder:
                content = Path(client.download_artifacts(version.run_id, document, folder)).read_bytes()
        return VersionRecord(
            version=int(version.version),
            created_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
            aliases=aliases,
            tags=dict(version.tags),
            run_id=version.run_id,
            run_name=run.info.run_name,
            run_tags=dict(run.data.tags),
            parameters=dict(run.data.params),
            metrics=dict(run.data.metrics),
            document=content,
        )

    def load(self, model_name: str, alias: str) -> RegisteredBundle | None:
        """Download and verify the bundle behind an alias, or return None when the alias does not exist."""
        version = self.version_of(model_name, alias)
        return None if version is None else self.load_version(model_name, version)

    def load_version(self, model_name: str, version: int) -> RegisteredBundle:
        """Download a version's bundle and verify it against the tag `bundle_sha256`."""
        import mlflow

        with self._translated() as client, tempfile.TemporaryDirectory() as folder:
            found = client.get_model_version(model_name, str(version))
            if found.status != "READY":
                raise RegistryError(f"{model_name} version {version} is not complete: {found.status}")
            expected = found.tags.get("bundle_sha256")
            if expected is None:
                raise RegistryError(f"{model_name} version {version} carries no tag bundle_sha256")
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{model_name}/{version}",
                dst_path=folder,
                tracking_uri=self.tracking_uri,
            )
            bundle = load_bundle(Path(path) / BUNDLE_IN_MODEL, expected)
        return RegisteredBundle(model_name, version, bundle)

    def log_run(self, run: TrainingRun) -> str:
        """Log a run that releases nothing, such as a search, and return its id."""
        with self._translated(), self._started(run, {}) as run_id:
            return run_id

    def register(self, bundle_folder: Path, bundle: RegisterableBundle, run: TrainingRun) -> int:
        """Log the run with its bundle, register a model version with tags and set the alias `staging` last.

        The version is downloaded and verified before the alias moves, so `staging` never names a broken one.
        When a step fails, the run is marked as failed, the version is removed and no alias has moved.
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
            with self._started(run, tags) as run_id:
                model_uri = _log_bundle(bundle_folder, bundle.packaging())
            version = int(mlflow.register_model(model_uri, name, tags=tags).version)
            try:
                self.load_version(name, version)
                if run.description:
                    client.update_model_version(name, str(version), description=run.description)
                if run.model_description:
                    client.update_registered_model(name, description=run.model_description)
                client.set_registered_model_alias(name, STAGING, str(version))
            except Exception as error:
                _discard(client, name, version, run_id, error)
                raise
        return version

    @contextmanager
    def _started(self, run: TrainingRun, tags: Mapping[str, str]) -> Iterator[str]:
        """Start a run, log all it records and give its id; it fails if the block does."""
        import mlflow

        mlflow.set_experiment(run.experiment)
        with mlflow.start_run(run_name=run.run_name, tags={**run.all_tags(), **tags}) as started:
            mlflow.log_params(dict(run.parameters))
            mlflow.log_metrics(dict(run.metrics))
            plots = {f"plots/{name}.png": content for name, content in run.figures.items()}
            _log_files({**plots, **run.documents})
            yield started.info.run_id

    def promote(self, model_name: str, version: int) -> None:
        """Move `champion` to the version; the old champion becomes `previous` first."""
        old = self.version_of(model_name, CHAMPION)
        with self._translated() as client:
            if old is not None and old != version:
                client.set_registered_model_alias(model_name, PREVIOUS, str(old))
            client.set_registered_model_alias(model_name, CHAMPION, str(version))

    def rollback(self, model_name: str) -> tuple[int, int]:
        """Put the previous champion back and return (from, to); a second rollback returns.

        `champion` moves first: production is what is urgent. The version to return to is verified before.
        Raises RegistryError when there is none to return to.
        """
        old, new = self.version_of(model_name, CHAMPION), self.version_of(model_name, PREVIOUS)
        if old is None or new is None or old == new:
            raise RegistryError(f"{model_name} has no {PREVIOUS} version to return to")
        self.load_version(model_name, new)
        with self._translated() as client:
            client.set_registered_model_alias(model_name, CHAMPION, str(new))
            client.set_registered_model_alias(model_name, PREVIOUS, str(old))
        return old, new

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


def load_bundle(folder: Path, expected_sha256: str | None = None) -> Any:
    """Load a bundle as the class of its kind; raises BundleError when it is not exactly what was released."""
    manifest, _, identity = verify_bundle(folder, expected_sha256)
    if manifest.model_kind != "recommender":
        return ReleaseBundle.load(folder, identity)
    from common_ml_utils.recommender_bundle import RecommenderBundle

    return RecommenderBundle.load(folder, identity)


def _discard(client: Any, name: str, version: int, run_id: str, error: Exception) -> None:
    """Remove a version that can't be used; what goes wrong in doing so is noted on the error."""
    try:
        client.set_terminated(run_id, "FAILED")
        client.delete_model_version(name, str(version))
    except Exception as also:  # the first error counts: an unreachable registry fails here too
        error.add_note(f"{name} version {version} remains, without alias: {first_line(also)}")


def save_bundle_model(bundle_folder: Path, bundle: RegisterableBundle, path: Path) -> None:
    """Write the MLflow model that `register` would log into a new local folder, without a tracking server."""
    import mlflow

    with _pyfunc_arguments(bundle_folder, bundle.packaging()) as arguments:
        mlflow.pyfunc.save_model(str(path), **arguments)


def _log_bundle(bundle_folder: Path, packaging: Packaging) -> str:
    import mlflow

    with _pyfunc_arguments(bundle_folder, packaging) as arguments:
        return mlflow.pyfunc.log_model(name="model", **arguments).model_uri


@contextmanager
def _pyfunc_arguments(bundle_folder: Path, packaging: Packaging) -> Iterator[dict[str, Any]]:
    """Gather bundle and code in a folder that lasts as long as the block."""
    requirements = [
        f"{package}=={importlib.metadata.version(package)}" for package in ("mlflow", *packaging.requirements)
    ]
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / BUNDLE_FOLDER
        shutil.copytree(bundle_folder, artifact)
        code = Path(folder) / PACKAGE.name
        for module in packaging.modules:
            (code / module).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PACKAGE / module, code / module)
        yield {
            "python_model": str(PACKAGE / packaging.python_model),
            "code_paths": [str(code)],
            "artifacts": {BUNDLE_FOLDER: str(artifact)},
            "signature": packaging.signature,
            "input_example": packaging.input_example,
            "pip_requirements": requirements,
        }


def _log_files(files: Mapping[str, bytes]) -> None:
    """Attach files to the active run; raises ValueError for a path that leaves the run's folder."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        for name, content in files.items():
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise ValueError(f"an artifact's path must stay inside the run's folder: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if files:
            mlflow.log_artifacts(folder)


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(  # noqa: S603 (fixed command, no shell)
        ["git", "-C", str(folder), *arguments],  # noqa: S607 (git of the PATH)
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    ).stdout
