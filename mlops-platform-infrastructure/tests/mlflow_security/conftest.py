"""The server of ours, started once as in its image: a process on loopback, SQLite, a folder as the store."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

GUARD = Path(__file__).resolve().parents[2] / "images/mlflow_server"
sys.path.insert(0, str(GUARD))  # the folder that the image has on its PYTHONPATH

from mlflow_security_client import Server, free_port  # noqa: E402

UPLOAD_LIMIT = 1 << 20


def environment(folder: Path, port: int, passwords: dict[str, str]) -> dict[str, str]:
    """What the server's container is given."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(GUARD),
        "PYTHONWARNINGS": "ignore",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "store"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(24),
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(port),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},mlflow.test:{port}",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "https://mlflow.test",
        "MLFLOW_MAX_UPLOAD_BYTES": str(UPLOAD_LIMIT),
        "MLFLOW_MAX_JSON_BYTES": str(UPLOAD_LIMIT),
        "MLFLOW_IDLE_SECONDS": "2",
        "NO_PROXY": "127.0.0.1",
        **{f"MLFLOW_{role.upper()}_PASSWORD": password for role, password in passwords.items()},
    }


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server behind the layer, with the platform's users."""
    yield from started(tmp_path_factory.mktemp("guarded"), [sys.executable, "-m", "mlflow_guard", "serve"])


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow's own application with the same settings, without the layer."""
    yield from started(tmp_path_factory.mktemp("bare"), [sys.executable, "-c", BARE])


@pytest.fixture(scope="session")
def server_on_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server as it is deployed: its artifacts in the stack's object store."""
    folder = tmp_path_factory.mktemp("s3")
    own = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "S3_"))}
    own["MLFLOW_ARTIFACTS_DESTINATION"] = f"s3://mlflow/{secrets.token_hex(8)}"
    yield from started(folder, [sys.executable, "-m", "mlflow_guard", "serve"], own)


BARE = """
import os, uvicorn
from mlflow_guard import settings
read = settings.read(os.environ)
os.environ.update(settings.mlflow_environment(read, os.environ))
from mlflow.server.fastapi_app import app
uvicorn.run(app, host=read.host, port=read.port)
"""


def started(folder: Path, command: list[str], own: Mapping[str, str] = {}) -> Iterator[Server]:
    port = free_port()
    passwords = {role: secrets.token_urlsafe(24) for role in ("admin", "trainer", "service")}
    env = environment(folder, port, passwords) | own
    (folder / "store").mkdir()
    (folder / "outside.txt").write_text(Server.SECRET)
    done = run([sys.executable, "-m", "mlflow_guard", "init"], env)
    assert done.returncode == 0, done.stderr
    with (folder / "log").open("wb") as log, subprocess.Popen(command, env=env, stderr=log) as process:
        found = Server(port, passwords, folder, env)
        try:
            until = time.monotonic() + 90
            while not found.healthy():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until, "the server does not answer"
                time.sleep(0.1)
            yield found
        finally:
            process.terminate()
            process.wait(20)
