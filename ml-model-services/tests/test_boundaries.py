"""No root's Python is imported, importing does nothing, and the libraries know no service."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ROOT / "common_service_libs"
SERVICES = sorted(path for path in (ROOT / "services").iterdir() if path.is_dir())
SOURCES = [*LIBRARIES.rglob("*.py"), *(file for service in SERVICES for file in service.glob("app/**/*.py"))]
ALLOWED = {
    "app", "cel", "common_service_libs", "confluent_kafka", "fastapi", "hiredis", "jwt", "lightgbm", "mlflow",
    "msgspec", "numpy", "opentelemetry", "prometheus_client", "psycopg", "pydantic",
    "pydantic_settings", "starlette", "uvicorn", "xgboost", "yaml",
}  # fmt: skip
DECIDING = [service for service in SERVICES if service.name != "decision_page"]
PAGE_ALLOWED = {"gradio", "httpx", "plotly"}  # the extra `page`


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_declared_packages_are_imported(path: Path) -> None:
    page = path.is_relative_to(ROOT / "services" / "decision_page")
    assert _imported(path) - set(sys.stdlib_module_names) <= (ALLOWED | PAGE_ALLOWED if page else ALLOWED)
    if path.is_relative_to(LIBRARIES):
        assert "app" not in _imported(path)


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_importing_a_service_does_nothing_and_loads_no_registry_client(service: Path) -> None:
    script = (
        "import os, sys, threading\n"
        "before = set(os.listdir('.'))\n"
        "import app.main\n"
        "assert threading.active_count() == 1\n"
        "assert set(os.listdir('.')) - before <= {'__pycache__'}\n"
        "assert 'mlflow' not in sys.modules and 'xgboost' not in sys.modules\n"
        "assert 'opentelemetry.sdk' not in sys.modules and 'jwt' not in sys.modules\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=service,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("service", DECIDING, ids=lambda path: path.name)
def test_a_service_that_cannot_start_says_why_in_one_line(service: Path, tmp_path: Path) -> None:
    def start(**settings: str) -> str:
        environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **settings}
        done = subprocess.run(
            [sys.executable, "-m", "app.main"],
            cwd=service,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        return done.stderr

    assert "DECISIONS_DB_PASSWORD: field required, MLFLOW_TRACKING_URI: field required" in start()
    complete = {
        "DECISIONS_DB_PASSWORD": "a-secret-password",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "SPOOL_DIR": str(tmp_path),
        "API_KEYS_FILE": str(tmp_path / "nowhere.json"),
    }
    said = start(**complete)
    assert "nowhere.json" in said
    assert said.count("\n") == 1
    assert "a-secret-password" not in said + start(**complete | {"SERVICE_PORT": "70000"})
