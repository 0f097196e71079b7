"""The overlays as kubectl builds them, once a run."""

from __future__ import annotations

import os
import platform
from typing import Any

import overlay_builds
import pytest
import yaml


@pytest.fixture(scope="session")
def build() -> Any:
    """Build an overlay and return its documents."""
    if overlay_builds.kubectl() is None:
        message = f"kubectl is not installed (make kubectl; this is {platform.system()} {platform.machine()})"
        if os.environ.get("REQUIRE_KUBECTL"):
            pytest.fail(message)
        pytest.skip(message)
    return lambda overlay: list(yaml.load_all(overlay_builds.build(overlay), yaml.CSafeLoader))
