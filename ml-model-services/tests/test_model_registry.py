from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_testkit import FakeRegistry, fraud_bundle

from common_service_libs.errors import BundleError, BundleUnavailable, RegistryError
from common_service_libs.model_registry import (
    SWITCH_SECONDS,
    AliasWatch,
    BundleCache,
    LastGood,
    MlflowRegistry,
    ModelVersion,
    ModelWatcher,
)
from common_service_libs.release_bundle import load_bundle, verify

NAME = "fraud-detection-model"


class Watched:
    """A watcher with everything it did written down."""

    def __init__(self, tmp_path: Path, registry: FakeRegistry, trial: Any = None) -> None:
        self.installed: list[int] = []
        self.switch_intervals: list[float] = []
        self.outcomes: list[str] = []
        self.cache = BundleCache(tmp_path / "bundles", registry)
        self.last_good = LastGood(tmp_path / "service" / "last_good.json")
        self.watcher = ModelWatcher(
            registry,
            self.cache,
            self.last_good,
            name=NAME,
            alias="champion",
            poll_seconds=0.01,
            install=self._install,
            on_outcome=self.outcomes.append,
            trial=trial,
        )

    def _install(self, folder: Path, version: ModelVersion) -> None:
        load_bundle(
            folder,
            model_name=NAME,
            feature_service="fraud_detection_v1",
            expected_sha256=version.bundle_sha256,
        )
        self.installed.append(version.version)
        self.switch_intervals.append(round(sys.getswitchinterval(), 6))


@pytest.fixture
def registry(bundle_folder: Path) -> FakeRegistry:
    registry = FakeRegistry()
    sha256 = _sha256(bundle_folder)
    registry.add(NAME, 1, bundle_folder, sha256)
    return registry


def _sha256(folder: Path) -> str:
    return verify(folder)[2]


def test_a_champion_is_installed_once_and_the_next_one_follows_the_alias(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    watched = Watched(tmp_path, registry)
    watched.watcher.poll()
    watched.watcher.poll()
    registry.add(NAME, 2, tmp_path / "b2", fraud_bundle(tmp_path / "b2", seed=2))
    watched.watcher.poll()
    assert watched.installed == [1, 2]
    assert watched.switch_intervals == [SWITCH_SECONDS] * 2, "replies go first while a bundle is read"
    assert sys.getswitchinterval() > SWITCH_SECONDS
    registry.champion = 1
    watched.watcher.poll()
    assert watched.installed == [1, 2, 1]
    assert registry.downloads == 2, "a rollback needs no download"


def test_a_corrupt_bundle_is_refused_once_and_what_is_in_service_stays(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    watched = Watched(tmp_path, registry)
    watched.watcher.poll()
    sha256 = fraud_bundle(tmp_path / "b2", seed=2)
    (tmp_path / "b2" / "model.ubj").write_bytes(b"altered")
    registry.add(NAME, 2, tmp_path / "b2", sha256)
    for _ in range(3):
        watched.watcher.poll()
    assert watched.installed == [1]
    assert watched.outcomes == ["installed", "refused"]
    assert watched.last_good.read() == ModelVersion(
        NAME, 1, _sha256(tmp_path / "bundles" / registry.versions[1][1])
    )


def test_a_bundle_that_is_not_the_registered_one_is_refused(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.add(NAME, 1, registry.versions[1][0], "0" * 64)
    watched = Watched(tmp_path, registry)
    watched.watcher.poll()
    assert watched.installed == []
    assert watched.outcomes == ["refused"]


def test_a_silent_registry_is_asked_again(tmp_path: Path, registry: FakeRegistry) -> None:
    watched = Watched(tmp_path, registry)
    registry.silent = True
    watched.watcher.poll()
    registry.silent = False
    watched.watcher.poll()
    assert watched.outcomes == ["registry_silent", "installed"]


def test_no_champion_is_no_error(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.champion = None
    watched = Watched(tmp_path, registry)
    watched.watcher.poll()
    assert watched.outcomes == []


def test_the_last_bundle_is_restored_while_the_registry_is_away(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    Watched(tmp_path, registry).watcher.poll()
    registry.silent = True
    watched = Watched(tmp_path, registry)
    watched.watcher.restore()
    assert watched.installed == [1]
    registry.silent = False
    watched.watcher.poll()
    assert watched.installed == [1], "what was restored is not installed twice"


def test_a_restored_bundle_that_was_damaged_on_the_disk_is_fetched_again(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    Watched(tmp_path, registry).watcher.poll()
    next((tmp_path / "bundles").glob("*/model.ubj")).write_bytes(b"damaged")
    watched = Watched(tmp_path, registry)
    watched.watcher.restore()
    assert watched.installed == []
    watched.watcher.poll()
    assert watched.installed == [1]


def test_a_copy_damaged_on_the_disk_while_in_use_is_fetched_again(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    watched = Watched(tmp_path, registry)
    watched.watcher.poll()
    next((tmp_path / "bundles").glob("*/model.ubj")).write_bytes(b"damaged")
    again = Watched(tmp_path, registry)
    again.watcher.poll()
    assert again.installed == []
    again.watcher.poll()
    assert again.installed == [1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": 1}'])
def test_a_damaged_note_is_no_note(tmp_path: Path, content: str) -> None:
    path = tmp_path / "last_good.json"
    path.write_text(content)
    assert LastGood(path).read() is None


def test_old_bundles_are_forgotten_and_recorded_ones_fetched_by_identity(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common_service_libs.model_registry.KEPT_BUNDLES", 1)
    cache = BundleCache(tmp_path / "bundles", registry)
    first = registry.versions[1][1]
    cache.obtain(ModelVersion(NAME, 1, first))
    second = fraud_bundle(tmp_path / "b2", seed=2)
    registry.add(NAME, 2, tmp_path / "b2", second)
    cache.obtain(ModelVersion(NAME, 2, second))
    assert cache.path(first) is None
    assert cache.obtain_recorded(NAME, 1, first).name == first
    registry.silent = True
    with pytest.raises(BundleUnavailable):
        cache.obtain_recorded(NAME, 2, second)
    with pytest.raises(BundleUnavailable):
        cache.obtain_recorded(NAME, 1, "../../etc")


def test_artifacts_without_a_bundle_are_refused(tmp_path: Path, registry: FakeRegistry) -> None:
    (tmp_path / "empty").mkdir()
    registry.add(NAME, 1, tmp_path / "empty", None)
    with pytest.raises(BundleError, match="0 bundles"):
        BundleCache(tmp_path / "bundles", registry).obtain(ModelVersion(NAME, 1, None))


# --- the MLflow registry's answers ----------------------------------------------------------------


class _Answers(http.server.BaseHTTPRequestHandler):
    status = 200
    body = b""
    seen: str = ""
    sent: bytes = b""

    def do_GET(self) -> None:
        type(self).seen = f"{self.path} {self.headers.get('Authorization', '')}".strip()
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self) -> None:
        type(self).sent = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *args: object) -> None:
        return None


@pytest.fixture
def answers() -> Iterator[tuple[type[_Answers], MlflowRegistry]]:
    handler = type("Handler", (_Answers,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield (
        handler,
        MlflowRegistry(f"http://127.0.0.1:{server.server_port}/", deadline=1, download_deadline=1),
    )
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_alias_is_read_from_the_rest_interface(
    answers: tuple[type[_Answers], MlflowRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, registry = answers
    tags = [{"key": "bundle_sha256", "value": "a" * 64}]
    handler.body = json.dumps({"model_version": {"name": NAME, "version": "7", "tags": tags}}).encode()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass")
    assert registry.by_alias(NAME, "champion") == ModelVersion(NAME, 7, "a" * 64)
    path = "/api/2.0/mlflow/registered-models/alias?name=fraud-detection-model&alias=champion"
    assert handler.seen == f"{path} Basic dXNlcjpwYXNz"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}'),
        (
            400,
            b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias not found."}',
        ),
    ],
)
def test_an_alias_that_is_not_set_is_none(
    answers: tuple[type[_Answers], MlflowRegistry], status: int, body: bytes
) -> None:
    handler, registry = answers
    handler.status, handler.body = status, body
    assert registry.by_alias(NAME, "champion") is None


@pytest.mark.parametrize(
    ("status", "body"), [(500, b""), (200, b"<html>"), (200, b"{}"), (200, b'{"model_version": {}}')]
)
def test_any_other_answer_is_an_error(
    answers: tuple[type[_Answers], MlflowRegistry], status: int, body: bytes
) -> None:
    handler, registry = answers
    handler.status, handler.body = status, body
    with pytest.raises(RegistryError):
        registry.by_alias(NAME, "champion")


def test_a_registry_that_is_away_or_no_server_at_all_is_an_error() -> None:
    with pytest.raises(RegistryError, match="does not answer"):
        MlflowRegistry("http://127.0.0.1:9", deadline=0.2, download_deadline=1).by_alias(NAME, "champion")
    with pytest.raises(RegistryError, match="http or https"):
        MlflowRegistry("sqlite:///x.db", deadline=1, download_deadline=1)


def test_a_tag_that_names_another_versions_bundle_is_refused_although_that_bundle_is_here(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    watched = Watched(tmp_path, registry)
    watched.watcher.poll()
    fraud_bundle(tmp_path / "b2", seed=2)
    registry.add(NAME, 2, tmp_path / "b2", registry.versions[1][1])
    watched.watcher.poll()
    assert watched.installed == [1]
    assert watched.outcomes == ["installed", "refused"]


def test_what_cannot_be_read_as_files_or_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    version = ModelVersion(NAME, 1, registry.versions[1][1])
    size = sum(path.stat().st_size for path in registry.versions[1][0].iterdir())
    BundleCache(tmp_path / "enough", registry, max_bytes=size).obtain(version)
    with pytest.raises(BundleError, match="this service reads"):
        BundleCache(tmp_path / "small", registry, max_bytes=size - 1).obtain(version)
    sha256 = fraud_bundle(tmp_path / "fifo", seed=2)
    (tmp_path / "fifo" / "golden.json").unlink()
    os.mkfifo(tmp_path / "fifo" / "golden.json")

    def linked(version: ModelVersion, folder: Path) -> None:
        (folder / "bundle").symlink_to(tmp_path / "fifo", target_is_directory=True)

    registry.download = linked  # type: ignore[method-assign]
    with pytest.raises(BundleError, match="is not a file"):
        BundleCache(tmp_path / "bundles", registry).obtain(ModelVersion(NAME, 2, sha256))


def test_a_new_bundle_is_tried_once_and_one_that_fails_its_trial_is_never_loaded(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    tried: list[int] = []

    def trial(folder: Path, version: ModelVersion) -> None:
        tried.append(version.version)
        if version.version == 2:
            raise BundleError("it ended its process")

    watched = Watched(tmp_path, registry, trial=trial)
    watched.watcher.poll()
    registry.add(NAME, 2, tmp_path / "b2", fraud_bundle(tmp_path / "b2", seed=2))
    watched.watcher.poll()
    watched.watcher.poll()
    registry.add(NAME, 3, tmp_path / "b3", fraud_bundle(tmp_path / "b3", seed=3))
    watched.watcher.poll()
    registry.champion = 1
    watched.watcher.poll()
    assert tried == [1, 2, 3], "what was in service before needs no trial"
    assert watched.installed == [1, 3, 1]
    Watched(tmp_path, registry, trial=trial).watcher.restore()
    assert tried == [1, 2, 3]


def test_an_unforeseen_error_of_a_bundle_is_a_refusal_too(tmp_path: Path, registry: FakeRegistry) -> None:
    watched = Watched(tmp_path, registry)
    watched.watcher.poll()

    def fail(folder: Path, version: ModelVersion) -> None:
        raise ZeroDivisionError

    watched.watcher._install = fail
    registry.add(NAME, 2, tmp_path / "b2", fraud_bundle(tmp_path / "b2", seed=2))
    watched.watcher.poll()
    watched.watcher.poll()
    assert watched.outcomes == ["installed", "refused"]
    again = Watched(tmp_path, registry)
    again.watcher._install = fail
    again.watcher.restore()
    assert again.outcomes == ["refused"], "the service starts all the same"


def test_another_alias_is_followed_with_its_tags_and_its_end_is_told(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    installed: list[int] = []
    seen: list[str | None] = []
    cache = BundleCache(tmp_path / "bundles", registry)
    canary = AliasWatch(
        registry, cache, LastGood(tmp_path / "last_canary.json"), name=NAME, alias="canary",
        install=lambda folder, version: installed.append(version.version),
        on_outcome=lambda outcome: None,
        seen=lambda version: seen.append(version and version.tags.get("canary_share")),
    )  # fmt: skip
    canary.poll()
    registry.aliases["canary"] = 1
    registry.tags[1] = {"canary_share": "0.1"}
    canary.poll()
    registry.tags[1] = {"canary_share": "0.2"}
    canary.poll()
    noted = LastGood(tmp_path / "last_canary.json").read()
    assert noted is not None
    assert noted.tags == {"canary_share": "0.2"}, "a restart begins with the newest share"
    registry.silent = True
    canary.poll()
    registry.silent = False
    del registry.aliases["canary"]
    canary.poll()
    assert LastGood(tmp_path / "last_canary.json").read() is None
    registry.aliases["canary"] = 1
    canary.poll()
    assert installed == [1, 1]
    assert seen == [None, "0.1", "0.2", None, "0.2"], "a silent registry says nothing"


def test_a_tag_is_written_through_the_rest_interface(
    answers: tuple[type[_Answers], MlflowRegistry],
) -> None:
    handler, registry = answers
    handler.body = b"{}"
    registry.set_tag(ModelVersion(NAME, 7, None), "canary_share", "0.05")
    assert handler.seen == "/api/2.0/mlflow/model-versions/set-tag"
    assert json.loads(handler.sent) == {
        "name": NAME, "version": "7", "key": "canary_share", "value": "0.05",
    }  # fmt: skip
    handler.status = 404
    with pytest.raises(RegistryError, match="no such"):
        registry.set_tag(ModelVersion(NAME, 8, None), "canary_share", "0.05")
