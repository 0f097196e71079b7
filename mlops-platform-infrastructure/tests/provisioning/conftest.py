"""What the tests on an engine share: its base image, and one cache of what apt downloads."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from local_engine.base_images import ensure


@pytest.fixture(scope="session")
def apt_cache() -> Iterator[str]:
    """A volume for apt's archives: each package is downloaded once a session."""
    ensure(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    name = f"provisioning-apt-{uuid.uuid4().hex[:8]}"
    subprocess.run(["docker", "volume", "create", name], check=True, capture_output=True)
    yield f"{name}:/var/cache/apt/archives"
    subprocess.run(["docker", "volume", "rm", name], check=True, capture_output=True)
