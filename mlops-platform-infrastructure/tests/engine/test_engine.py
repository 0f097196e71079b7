"""What the private engine refuses, and that it ends nobody else's process; no engine is started here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local_engine import base_images
from local_engine.engine import Engine, EngineError, answers


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr("local_engine.engine.SYSTEM_FOLDERS", str(tmp_path))


def test_without_docker_the_error_says_what_to_install(nothing_installed: None, tmp_path: Path):
    assert not answers("unix:///var/run/docker.sock")
    with pytest.raises(EngineError, match="not installed"):
        Engine(tmp_path / "engine").start()
    assert not (tmp_path / "engine").exists()


def test_an_ordinary_user_is_told_that_root_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("docker", "dockerd"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EngineError, match="only root"):
        Engine(tmp_path / "engine").start()


def test_a_pid_file_that_names_another_process_ends_nothing(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        (tmp_path / "dockerd.pid").write_text(str(other.pid))
        assert Engine(tmp_path).stop() is False
        assert other.poll() is None
        other.kill()


def test_nothing_is_stopped_where_nothing_was_started(tmp_path: Path):
    assert Engine(tmp_path).stop() is False


def test_a_base_image_that_can_neither_be_pulled_nor_made_is_an_error(
    nothing_installed: None, monkeypatch: pytest.MonkeyPatch
):
    refused = subprocess.CompletedProcess([], 1, "", "no route")
    monkeypatch.setattr(base_images, "docker", lambda *_, **__: refused)
    with pytest.raises(EngineError, match="mmdebstrap"):
        base_images.ensure("unix:///nowhere")
