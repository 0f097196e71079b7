"""The way of a bundle from the registry into a service: ask for the alias, fetch, check, swap.

A bundle that was once in service stays on the local disk, so that a service starts, and an old decision can
be explained, while the registry is away.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from common_service_libs.errors import ArtifactError, BundleError, BundleUnavailable, RegistryError
from common_service_libs.release_bundle import find_bundle, verify

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROOT = Path(__file__).resolve().parent.parent
KEPT_BUNDLES = 20
MAX_BUNDLE_BYTES = 512 << 20
ABANDONED_SECONDS = 3600
SWITCH_SECONDS = 0.0005


@dataclass(frozen=True)
class ModelVersion:
    """A version in the registry; `bundle_sha256` is None if it was registered without that tag.

    `tags` are what stands beside the version now; they may change while the version stays the same.
    """

    name: str
    version: int
    bundle_sha256: str | None
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)


class Registry(Protocol):
    """What a service asks of a model registry; every call has a deadline and blocks."""

    def by_alias(self, name: str, alias: str) -> ModelVersion | None:
        """Return the version behind an alias, None if there is none; raises RegistryError."""

    def download(self, version: ModelVersion, folder: Path) -> None:
        """Put the artifacts of a version into `folder`; raises RegistryError."""

    def close(self) -> None:
        """Give up a download that is under way."""


class _NoSuchAlias(RegistryError):
    """The registry answers that there is no such model, version or alias."""


class MlflowRegistry:
    """The MLflow registry: one REST call for an alias, the client in a process of its own for a download."""

    def __init__(
        self,
        tracking_uri: str,
        *,
        deadline: float,
        download_deadline: float,
        max_bytes: int = MAX_BUNDLE_BYTES,
    ) -> None:
        scheme = urllib.parse.urlsplit(tracking_uri).scheme
        if scheme not in {"http", "https"}:
            raise RegistryError(
                f"the tracking server is reached by http or https, not by {scheme or 'a path'}"
            )
        self._uri = tracking_uri.rstrip("/")
        self._deadline = deadline
        self._download_deadline = download_deadline
        self._max_bytes = max_bytes
        self._downloads: set[subprocess.Popen[bytes]] = set()

    def by_alias(self, name: str, alias: str) -> ModelVersion | None:
        """Return the version behind an alias, None if there is none; raises RegistryError."""
        query = urllib.parse.urlencode({"name": name, "alias": alias})
        answer = self._get(f"/api/2.0/mlflow/registered-models/alias?{query}")
        if answer is None:
            return None
        try:
            found = answer["model_version"]
            tags = {tag["key"]: tag["value"] for tag in found.get("tags", [])}
            return ModelVersion(name, int(found["version"]), tags.get("bundle_sha256"), tags)
        except (KeyError, TypeError, ValueError):
            raise RegistryError("the registry's answer is not a model version") from None

    def _get(self, path: str) -> dict[str, Any] | None:
        try:
            return self._call(path)
        except _NoSuchAlias:
            return None

    def _call(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        headers = _credentials() | ({} if body is None else {"Content-Type": "application/json"})
        request = urllib.request.Request(self._uri + path, body, headers)  # noqa: S310 - http(s) only
        try:
            with urllib.request.urlopen(request, timeout=self._deadline) as response:  # noqa: S310
                answer: dict[str, Any] = json.loads(response.read())
                return answer
        except urllib.error.HTTPError as error:
            if error.code == 404 or (error.code == 400 and b"alias" in error.read(4096)):
                raise _NoSuchAlias("the registry knows no such alias") from None
            raise RegistryError(f"the registry answers {error.code}") from None
        except (OSError, ValueError) as error:
            raise RegistryError(f"the registry does not answer: {error}") from None

    def set_tag(self, version: ModelVersion, key: str, value: str) -> None:
        """Write a tag of a version; raises RegistryError."""
        document = {"name": version.name, "version": str(version.version), "key": key, "value": value}
        self._call("/api/2.0/mlflow/model-versions/set-tag", json.dumps(document).encode())

    def download(self, version: ModelVersion, folder: Path) -> None:
        """Put the artifacts of a version into `folder`; raises RegistryError."""
        command = [sys.executable, "-m", "common_service_libs.fetch_bundle"]
        command += [version.name, str(version.version), str(folder)]
        command += ["--max-bytes", str(self._max_bytes)]
        environment = os.environ | {"MLFLOW_TRACKING_URI": self._uri, "PYTHONPATH": str(_ROOT)}
        with subprocess.Popen(  # noqa: S603 - the command is our own
            command, env=environment, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            self._downloads.add(process)
            try:
                _, said = process.communicate(timeout=self._download_deadline)
            except subprocess.TimeoutExpired:
                process.kill()
                raise RegistryError(f"no download within {self._download_deadline:.0f} s") from None
            finally:
                self._downloads.discard(process)
        if process.returncode != 0:
            raise RegistryError(f"download failed: {said.decode(errors='replace').strip()[-500:]}")

    def close(self) -> None:
        """Give up a download that is under way."""
        for process in list(self._downloads):
            process.kill()


def _credentials() -> dict[str, str]:
    """Return the header for the user or the token that MLflow's own variables name."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    return {}


class BundleCache:
    """Verified bundles on the local disk, by identity; shared by the services of a machine.

    Notes beside the bundles say which version brought which identity (a tag alone may name another version's
    bundle), and which bundles have passed their trial.
    """

    def __init__(self, folder: Path, registry: Registry, *, max_bytes: int = MAX_BUNDLE_BYTES) -> None:
        self._folder = folder
        self._registry = registry
        self._max_bytes = max_bytes

    def path(self, sha256: str) -> Path | None:
        """Return the folder of a bundle if it is here."""
        folder = self._folder / sha256
        return folder if _SHA256.fullmatch(sha256) and folder.is_dir() else None

    def has(self, version: ModelVersion) -> bool:
        """Return whether the bundle is here, and once came from this very version."""
        sha256 = version.bundle_sha256
        return sha256 is not None and self.path(sha256) is not None and self._origin(version, sha256).exists()

    def obtain(self, version: ModelVersion) -> tuple[Path, str]:
        """Return folder and identity of a version's bundle, downloading it if it is not here.

        Raises RegistryError, or BundleError if what was downloaded is not what was registered.
        """
        if version.bundle_sha256 and self.has(version):
            folder = self._folder / version.bundle_sha256
            os.utime(folder)  # what is used is kept
            return folder, version.bundle_sha256
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=self._folder) as scratch:
            self._registry.download(version, Path(scratch))
            found = find_bundle(Path(scratch))
            _require_plain_files(found, self._max_bytes)
            sha256 = verify(found)[2]
            if version.bundle_sha256 not in (None, sha256):
                raise BundleError("the bundle is not the one that was registered")
            if self.path(sha256) is None:
                self._keep(found, sha256)
        os.utime(self._folder / sha256)
        self._note(self._origin(version, sha256))
        self._forget_old()
        return self._folder / sha256, sha256

    def _keep(self, found: Path, sha256: str) -> None:
        try:
            found.rename(self._folder / sha256)
        except OSError:
            if self.path(sha256) is None:  # otherwise another process was faster
                raise

    def _origin(self, version: ModelVersion, sha256: str) -> Path:
        name = urllib.parse.quote(version.name, safe="")
        return self._folder / ".notes" / sha256 / f"{name}@{version.version}"

    def _trial(self, sha256: str) -> Path:
        return self._folder / ".notes" / sha256 / "tried"

    def _note(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch()

    def tried(self, sha256: str) -> bool:
        """Return whether the bundle has been loaded without harm before."""
        return self._trial(sha256).exists()

    def note_tried(self, sha256: str) -> None:
        """Remember that the bundle was loaded without harm."""
        self._note(self._trial(sha256))

    def discard(self, sha256: str) -> None:
        """Remove a bundle that turned out to be damaged on the disk, with what is noted of it."""
        if (folder := self.path(sha256)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(self._folder / ".notes" / sha256, ignore_errors=True)

    def _forget_old(self) -> None:
        for path in self._folder.glob(".download-*"):  # of a process that was killed
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        folders = [path for path in self._folder.iterdir() if _SHA256.fullmatch(path.name)]
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime)[:-KEPT_BUNDLES]:
            self.discard(folder.name)

    def obtain_recorded(self, name: str, version: int, sha256: str) -> Path:
        """Return the bundle that made a decision; raises BundleUnavailable if it cannot be had."""
        try:
            return self.path(sha256) or self.obtain(ModelVersion(name, version, sha256))[0]
        except (RegistryError, BundleError) as error:
            raise BundleUnavailable(f"bundle {sha256[:12]} of {name} version {version}: {error}") from None


def _require_plain_files(folder: Path, max_bytes: int) -> None:
    """Raise BundleError if what was downloaded is too large to be read, or cannot be read as files."""
    size = 0
    for path in folder.iterdir():
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{path.name} is not a file")
        size += found.st_size
    if size > max_bytes:
        raise BundleError(f"the bundle has {size} bytes, this service reads {max_bytes}")


class LastGood:
    """Remembers which bundle was last in service, with its tags."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> ModelVersion | None:
        """Return what was last in service, None if nothing was or the file is damaged."""
        try:
            document = json.loads(self._path.read_bytes())
            return ModelVersion(
                str(document["name"]),
                int(document["version"]),
                str(document["bundle_sha256"]),
                {str(key): str(value) for key, value in dict(document.get("tags", {})).items()},
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the note of the last bundle cannot be read", extra={"reason": str(error)})
            return None

    def write(self, version: ModelVersion) -> None:
        """Replace the note in one step."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        document: Mapping[str, Any] = {
            "name": version.name,
            "version": version.version,
            "bundle_sha256": version.bundle_sha256,
            "tags": dict(version.tags),
        }
        scratch = self._path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(document), encoding="utf-8")
        scratch.replace(self._path)

    def forget(self) -> None:
        """Remove the note."""
        self._path.unlink(missing_ok=True)


@contextmanager
def _giving_way() -> Iterator[None]:
    """Give the interpreter up ten times as often as usual: replies shall not wait while a bundle is read."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class AliasWatch:
    """Follows one alias and hands each new bundle to `install`; whatever fails, what is in service stays.

    `trial(folder, version)` may refuse a bundle before it is loaded here for the first time;
    `install(folder, version)` ends in the swap of one reference, which falls between two requests. A bundle
    that was refused is not tried again until the alias names another version; a registry that was silent is
    asked again. `seen` hears of every answer of the registry: the version, or None where there is no alias.
    """

    def __init__(  # noqa: PLR0913 - what to follow, and whom to tell
        self,
        registry: Registry,
        cache: BundleCache,
        last_good: LastGood,
        *,
        name: str,
        alias: str,
        install: Callable[[Path, ModelVersion], None],
        on_outcome: Callable[[str], None],
        trial: Callable[[Path, ModelVersion], None] | None = None,
        seen: Callable[[ModelVersion | None], None] | None = None,
    ) -> None:
        self.alias = alias
        self._registry = registry
        self._cache = cache
        self._last_good = last_good
        self._name = name
        self._install = install
        self._on_outcome = on_outcome
        self._trial = trial
        self._seen = seen
        self._settled: ModelVersion | None = None
        self._noted: ModelVersion | None = None
        self._registry_up = True

    def restore(self) -> None:
        """Install the bundle that was last in service, if it is on the disk and is of this model."""
        version = self._last_good.read()
        if version is None or version.name != self._name or not version.bundle_sha256:
            return
        folder = self._cache.path(version.bundle_sha256)
        if folder is None:
            return
        try:
            self._install(folder, version)
        except Exception as error:  # a service starts without its bundle, and fetches it again
            logger.error("the last bundle cannot be used again", extra={"reason": str(error)})
            self._on_outcome("refused")
            self._cache.discard(version.bundle_sha256)
            return
        self._on_outcome("restored")
        self._settled = self._noted = version
        if self._seen is not None:
            self._seen(version)

    def poll(self) -> None:
        """Ask once, and install what is new."""
        try:
            version = self._registry.by_alias(self._name, self.alias)
            self._note_registry(None)
        except RegistryError as error:
            self._note_registry(error)
            return
        if version is not None and version != self._settled:
            self._follow(version)
        if self._seen is not None:
            self._note_answer(version)
            self._seen(version)

    def _note_answer(self, version: ModelVersion | None) -> None:
        """Keep the note of what is in service as the registry has it now: its tags, or that it is over."""
        if version is None:
            self._settled = self._noted = None  # an alias that is set again is looked at again
            self._last_good.forget()
        elif self._noted is not None and version == self._settled and version.tags != self._noted.tags:
            self._note(replace(self._noted, tags=version.tags))

    def _note(self, version: ModelVersion) -> None:
        self._noted = version
        self._last_good.write(version)

    def _follow(self, version: ModelVersion) -> None:
        kept = version.bundle_sha256 is not None and self._cache.path(version.bundle_sha256) is not None
        try:
            folder, sha256 = self._cache.obtain(version)
        except RegistryError as error:
            self._note_registry(error)
            return
        except ArtifactError as error:
            self._refuse(version, error)
            return
        except OSError as error:
            logger.error("the bundle cannot be kept on the disk", extra={"reason": str(error)})
            self._on_outcome("failed")
            return
        installed = replace(version, bundle_sha256=sha256)
        try:
            if self._trial is not None and not self._cache.tried(sha256):
                self._trial(folder, installed)
                self._cache.note_tried(sha256)
            with _giving_way():
                self._install(folder, installed)
        except OSError as error:
            logger.error("the bundle cannot be read from the disk", extra={"reason": str(error)})
            self._on_outcome("failed")
            return
        except Exception as error:  # nothing that a bundle does may end the watch
            self._cache.discard(sha256)
            self._refuse(version, error)
            if kept:  # perhaps only the copy on the disk is damaged: fetch it once more
                self._settled = None
            return
        self._settled = version
        self._on_outcome("installed")
        self._note(installed)

    def _refuse(self, version: ModelVersion, error: Exception) -> None:
        reason = str(error) if isinstance(error, ArtifactError) else f"{type(error).__name__}: {error}"
        logger.error(
            "bundle refused", extra={"alias": self.alias, "version": version.version, "reason": reason[:500]}
        )
        self._on_outcome("refused")
        self._settled = version

    def _note_registry(self, error: RegistryError | None) -> None:
        if error is not None:
            self._on_outcome("registry_silent")
            if self._registry_up:
                logger.warning("the model registry does not answer", extra={"reason": str(error)})
        self._registry_up = error is None


class ModelWatcher(AliasWatch):
    """Polls the champion's alias, and those of `others` after it, in a thread of its own."""

    def __init__(  # noqa: PLR0913 - what to follow, and whom to tell
        self,
        registry: Registry,
        cache: BundleCache,
        last_good: LastGood,
        *,
        name: str,
        alias: str,
        poll_seconds: float,
        install: Callable[[Path, ModelVersion], None],
        on_outcome: Callable[[str], None],
        trial: Callable[[Path, ModelVersion], None] | None = None,
        others: Sequence[AliasWatch] = (),
    ) -> None:
        super().__init__(
            registry, cache, last_good, name=name, alias=alias, install=install, on_outcome=on_outcome,
            trial=trial,
        )  # fmt: skip
        self._others = tuple(others)
        self._poll_seconds = poll_seconds
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def restore(self) -> None:
        """Install what was last in service of every alias."""
        super().restore()
        for other in self._others:
            other.restore()

    def start(self) -> None:
        """Begin to poll, in a thread of its own."""
        self._thread = threading.Thread(target=self._watch, name="model-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop polling; a download that is under way is given up."""
        self._stopped.set()
        self._registry.close()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            for watch in (super().poll, *(other.poll for other in self._others)):
                try:
                    watch()
                except Exception:
                    logger.exception("looking for a new bundle failed and is tried again")
            self._stopped.wait(self._poll_seconds)

    def poll(self) -> None:
        """Ask once for every alias, and install what is new."""
        super().poll()
        for other in self._others:
            other.poll()
