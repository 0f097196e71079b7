"""The roots' own clients against the guarded server, each in its own environment; a bundle of the stack."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from mlflow_security_client import USERS, Server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = "fraud-detection-model"

FETCH = """
import sys
import mlflow
print(mlflow.artifacts.download_artifacts(artifact_uri="models:/{model}@champion", dst_path=sys.argv[1]))
"""
REGISTER = """
import sys
from pathlib import Path
from common_ml_utils.mlflow_utils import ModelRegistry, TrainingRun, load_bundle
folder = Path(sys.argv[1])
run = TrainingRun("guarded", "again", {{"depth": 3}}, {{"auc": 0.9}}, {{"kind": "test"}},
                  {{"plot": b"\\x89PNG"}}, documents={{"model_card/model_card.html": b"<p>card"}},
                  description="d", model_description="m")
registry = ModelRegistry(sys.argv[2])
registry.check_reachable()
version = registry.register(folder, load_bundle(folder), run)
registry.promote("{model}", version)
assert registry.champions() == {{"{model}": version}}
assert registry.versions("{model}", 5, "model_card/model_card.html")[0].document == b"<p>card"
assert registry.load("{model}", "champion").version == version
"""
SERVE = """
import sys
from pathlib import Path
from common_service_libs.model_registry import BundleCache, MlflowRegistry
from common_service_libs.errors import RegistryError
registry = MlflowRegistry(sys.argv[2], deadline=10, download_deadline=60)
version = registry.by_alias("{model}", "champion")
folder, sha256 = BundleCache(Path(sys.argv[1]) / "cache", registry).obtain(version)
assert sha256 == version.bundle_sha256, (sha256, version)
assert registry.by_alias("{model}", "shadow") is None
try:
    registry.set_tag(version, "canary_share", "0.05")
except RegistryError as error:
    assert "403" in str(error), error
else:
    raise AssertionError("a service wrote")
"""
MONITOR = """
import sys
from advanced_monitoring_scripts.champion_bundle import fetch_champion
assert fetch_champion(sys.argv[2], "{model}")
"""


def _run(root: str, code: str, role: str, server: Server, *arguments: str, uri: str | None = None) -> str:
    local = Path(os.environ.get("LOCAL_DIR") or REPOSITORY / ".local")
    address = uri or f"http://127.0.0.1:{server.port}"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "AWS", "S3"))}
    env |= {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    env |= {"PYTHONPATH": str(REPOSITORY / root), "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    if uri is None:
        env |= {
            "MLFLOW_TRACKING_USERNAME": USERS[role],
            "MLFLOW_TRACKING_PASSWORD": server.passwords[role],
        }
    python = str(local / f"venvs/{root}/bin/python")
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code.format(model=MODEL), *arguments, address],
        env=env, cwd=REPOSITORY / root, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_train_register_promote_serve_and_monitor_with_credentials(server_on_s3, tmp_path):
    server = server_on_s3
    stack = os.environ["MLFLOW_TRACKING_URI"]
    found = _run("ml-model-development", FETCH, "admin", server, str(tmp_path), uri=stack).strip()
    bundle = str(Path(found.splitlines()[-1]) / "artifacts/bundle")
    _run("ml-model-development", REGISTER, "trainer", server, bundle)
    _run("ml-model-services", SERVE, "service", server, str(tmp_path))
    _run("ml-reporting-and-monitoring-logic", MONITOR, "service", server, str(tmp_path))
