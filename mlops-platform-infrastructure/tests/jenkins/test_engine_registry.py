"""Pushing to a registry that asks for a password: Debian's docker-registry on this machine."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from server_tools import deploy, publish
from server_tools.releases import ReleaseError

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        shutil.which("docker-registry") is None or shutil.which("htpasswd") is None,
        reason="docker-registry and htpasswd are not installed (Debian: docker-registry, apache2-utils)",
    ),
]
USER, PASSWORD = "pusher", "right-password"


@pytest.fixture
def registry(tmp_path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    accounts = tmp_path / "htpasswd"
    made = subprocess.run(
        ["htpasswd", "-Bbn", USER, PASSWORD], check=True, capture_output=True, text=True
    ).stdout
    accounts.write_text(made)
    settings = tmp_path / "registry.yml"
    settings.write_text(
        json.dumps(
            {
                "version": 0.1,
                "storage": {"filesystem": {"rootdirectory": str(tmp_path / "store")}},
                "http": {"addr": address},
                "auth": {"htpasswd": {"realm": "test", "path": str(accounts)}},
            }
        )
    )
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0:
                break
        time.sleep(0.1)
    yield address
    server.terminate()
    server.wait(timeout=20)


@pytest.fixture
def image(monkeypatch) -> Iterator[str]:
    """An image of ours with next to nothing in it, under a tag of its own."""
    version = uuid.uuid4().hex[:12]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("version"))
    name = f"mlops/reporting:{version}"
    subprocess.run(["docker", "import", "-", name], input=content.getvalue(), check=True, capture_output=True)
    monkeypatch.setattr(publish, "tag", lambda image: version)
    monkeypatch.setattr(publish, "references", lambda names, registry: {"reporting": f"{registry}/{name}"})
    monkeypatch.setenv("REGISTRY_LOGIN_USR", USER)
    monkeypatch.setenv("REGISTRY_LOGIN_PSW", PASSWORD)
    yield name
    subprocess.run(["docker", "image", "rm", name], check=False, capture_output=True)


def test_an_image_is_pushed_and_fetched_by_who_has_the_password(registry, image, monkeypatch):
    pushed = publish.push(["reporting"], f"{registry}/team")
    assert pushed == [f"{registry}/team/{image}"]
    basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    request = urllib.request.Request(
        f"http://{registry}/v2/team/mlops/reporting/tags/list", headers={"Authorization": f"Basic {basic}"}
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert json.load(reply)["tags"] == [image.partition(":")[2]]
    # A deployment fetches it with the login, and nobody without: the password stayed nowhere.
    subprocess.run(["docker", "image", "rm", *pushed], check=True, capture_output=True)
    deploy.must_exist({"reporting": pushed[0]}, registry)
    subprocess.run(["docker", "image", "rm", *pushed], check=True, capture_output=True)
    monkeypatch.delenv("REGISTRY_LOGIN_PSW")
    with pytest.raises(ReleaseError, match="can't be pulled"):
        deploy.must_exist({"reporting": pushed[0]}, registry)
    settings = Path.home() / ".docker/config.json"
    assert not settings.exists() or registry not in settings.read_text()


def test_a_wrong_password_is_refused_and_not_shown(registry, image, monkeypatch):
    monkeypatch.setenv("REGISTRY_LOGIN_PSW", "wrong-password")
    with pytest.raises(ReleaseError, match="refused the login") as refused:
        publish.push(["reporting"], registry)
    assert "wrong-password" not in str(refused.value)
