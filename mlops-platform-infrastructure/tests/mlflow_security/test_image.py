"""The image as it is deployed: no root, no capability, no writable root file system; attacked and used."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attacks
import pytest
from mlflow_security_client import Server, free_port
from test_running_server import CLIENT, READER, act_as, refusals

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

IMAGE = "mlops/mlflow-server:dev"


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port, name = free_port(), f"mlflow-attacked-{secrets.token_hex(4)}"
    passwords = {role: secrets.token_urlsafe(24) for role in ("admin", "trainer", "service")}
    settings = {
        "MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": "/tmp/store",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(24),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},mlflow.test:{port}",
        **{f"MLFLOW_{role.upper()}_PASSWORD": password for role, password in passwords.items()},
    }
    env_file = tmp_path_factory.mktemp("image") / "env"
    env_file.touch(mode=0o600)
    env_file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    docker(
        "run", "--detach", "--rm", "--name", name, "--user", "12345:12345", "--read-only",
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
        "--tmpfs", "/tmp:size=256m,mode=1777", "--memory", "1536m",
        "--publish", f"127.0.0.1:{port}:5000", "--env-file", str(env_file), IMAGE,
        "sh", "-c", "python -m mlflow_guard init && exec python -m mlflow_guard serve",
    )  # fmt: skip
    found = Server(port, passwords, Path("/nowhere"), settings)
    try:
        until = time.monotonic() + 300
        while not found.healthy():
            assert time.monotonic() < until, docker("logs", name)
            time.sleep(0.5)
        yield found
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)


def test_the_image_refuses_every_attack_and_serves_its_clients(container):
    everything = [*attacks.traversals(), *attacks.addresses(), *attacks.bodies(), *attacks.pickles()]
    assert refusals(container, [*everything, *attacks.strangers(container.port)]) == {}
    for path in ("/", "/version", "/api/2.0/mlflow/registered-models/search", "/static-files/index.html"):
        assert container.call("GET", path, role=None).status == 401, path
    page = container.call("GET", "/", role="trainer")
    assert page.status == 200
    assert b"<html" in page.body.lower()
    assert "registered 1" in act_as(container, "trainer", CLIENT)
    assert "read 1" in act_as(container, "service", READER)
