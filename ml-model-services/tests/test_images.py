"""The images on a real Docker Engine: size, rights, health, a decision from the stack, an orderly end."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stack_testkit import free_port

pytestmark = [pytest.mark.images, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 450_000_000
READY_SECONDS = 60
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "fraud_detection_api": ("/predict", {"customer_id": 1, "terminal_id": 1, "tx_amount": 57.16}),
    "customer_churn_api": ("/predict", {"subscriber_id": 1}),
    "movie_recommendation_api": ("/recommend", {"viewer_id": 1}),
}

# All of them, or those that the environment names.
SERVICES = os.environ.get("IMAGES", "").split() or list(BODIES)


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert not check or done.returncode == 0, f"docker {arguments[0]}: {done.stderr[-2000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """Build every image; return their names by service."""
    docker("build", "-q", "-f", "Dockerfile.base_service", "-t", "mlops/decision-service-base", ".")
    names = {}
    for service in SERVICES:
        names[service] = f"mlops/{service.replace('_', '-')}"
        docker("build", "-q", "-f", f"services/{service}/Dockerfile", "-t", names[service], ".")
    return names


@contextmanager
def running(image: str, spool: Path) -> Iterator[tuple[str, str]]:
    """Run an image as the manifests do, on the stack's own network; yield container and address."""
    port = free_port()
    spool.mkdir(mode=0o700)
    os.chown(spool, 10001, 10001)
    keys = spool.parent / "api_keys.json"
    keys.write_bytes(Path(os.environ["API_KEYS_FILE"]).read_bytes())
    keys.chmod(0o444)
    passed = [
        name
        for name in os.environ
        if name.startswith(("REDIS_", "DECISIONS_DB_", "MLFLOW_TRACKING", "KAFKA_"))
    ]
    container = docker(
        "run", "--detach", "--network", "host", "--read-only", "--cap-drop", "ALL", "--memory", "512m",
        "--pids-limit", "200", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp:size=64m",
        "--volume", f"{spool}:/var/lib/decision-service",
        "--volume", f"{keys}:/etc/decision-service/api_keys.json:ro",
        *(part for name in passed for part in ("--env", name)),
        "--env", "API_KEYS_FILE=/etc/decision-service/api_keys.json",
        "--env", "SERVICE_HOST=127.0.0.1", "--env", f"SERVICE_PORT={port}", image,
    )  # fmt: skip
    try:
        yield container, f"http://127.0.0.1:{port}"
    finally:
        docker("rm", "--force", container)


def call(url: str, body: dict[str, Any] | None = None, request_id: str = "") -> dict[str, Any]:
    headers = {"X-API-Key": os.environ["DEMO_API_KEY"], "Content-Type": "application/json"}
    if request_id:
        headers["X-Request-ID"] = request_id
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def wait_ready(url: str, container: str) -> float:
    began = time.monotonic()
    while True:
        try:
            call(f"{url}/readyz")
            return time.monotonic() - began
        except OSError as error:
            ended = docker("inspect", "--format", "{{.State.Running}}", container) == "false"
            if ended or time.monotonic() - began > READY_SECONDS:
                said = subprocess.run(["docker", "logs", container], capture_output=True, check=False)
                pytest.fail(f"not ready: {error}\n{(said.stdout + said.stderr).decode()[-2000:]}")
            time.sleep(0.1)


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_is_small_harmless_and_decides(service: str, images: dict[str, str], tmp_path: Path):
    described = json.loads(docker("image", "inspect", images[service]))[0]
    assert described["Size"] <= MOST_BYTES, f"{described['Size'] / 1e6:.0f} MB"
    assert described["Config"]["User"] == "10001"
    assert described["Config"]["Healthcheck"]
    tmp_path.chmod(0o755)
    with running(images[service], tmp_path / "spool") as (container, url):
        seconds = wait_ready(url, container)
        path, body = BODIES[service]
        request_id = f"image-{uuid.uuid4()}"
        reply = call(url + path, body, request_id)
        assert reply["decision"]
        assert reply["policy"]["version"] >= 1
        assert call(f"{url}/decisions/{request_id}")["request_id"] == request_id
        assert docker("exec", container, "id", "-u") == "10001"
        refused = docker("exec", container, "sh", "-c", "touch /app/x /x 2>&1; true")
        assert refused.count("Read-only file system") == 2
        assert "CapEff:\t0000000000000000" in docker("exec", container, "cat", "/proc/1/status")
        health = "starting"
        while health == "starting":
            time.sleep(0.5)
            health = docker("inspect", "--format", "{{.State.Health.Status}}", container)
        assert health == "healthy"
        docker("stop", "--time", "30", container)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
    print(f"{service}: {described['Size'] / 1e6:.0f} MB, ready {seconds:.1f} s after it was started")


def test_the_health_check_sees_a_service_that_does_not_answer(images: dict[str, str]):
    image = images[SERVICES[0]]
    command = ["python3", "-m", "common_service_libs.healthcheck"]
    done = subprocess.run(["docker", "run", "--rm", image, *command], capture_output=True, check=False)
    assert done.returncode == 1
