"""The overlays as kubectl builds them, once a run."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = ROOT / "kubernetes_deployments"
OVERLAYS = sorted(
    str(path.parent.relative_to(DEPLOYMENTS)) for path in DEPLOYMENTS.glob("*/overlays/*/kustomization.yaml")
)


def kubectl() -> Path | None:
    """Return the pinned kubectl, or the one that KUBECTL names."""
    local = Path(os.environ.get("LOCAL_DIR") or ROOT.parent / ".local")
    path = Path(os.environ.get("KUBECTL") or local / "tools" / "kubectl" / "kubectl")
    return path if path.is_file() else None


@functools.cache
def build(overlay: str) -> str:
    program = kubectl()
    assert program is not None
    built = subprocess.run(
        [program, "kustomize", DEPLOYMENTS / overlay], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return built.stdout
