"""What does not need a tracking server."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from common_ml_utils.errors import RegistryError
from common_ml_utils.mlflow_utils import PACKAGE, ModelRegistry, git_commit
from common_ml_utils.release_bundle import SCORING_MODULES


def test_an_unreachable_registry_is_found_out_at_once() -> None:
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:1 does not answer"):
        ModelRegistry("http://127.0.0.1:1").check_reachable()


def test_the_commit_says_when_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert git_commit(tmp_path) == "unknown"
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "code.py").write_text("1")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    clean = git_commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "code.py").write_text("2")
    assert git_commit(tmp_path) == f"{clean}-dirty"
    monkeypatch.setenv("GIT_COMMIT", "feed")
    assert git_commit(tmp_path) == "feed"


def test_the_logged_code_is_all_that_scoring_imports() -> None:
    """The modules beside a model import nothing of this package that is not logged with them."""
    logged = {
        module.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for module in SCORING_MODULES
    }
    for module in (*SCORING_MODULES, "bundle_model.py"):
        tree = ast.parse((PACKAGE / module).read_text())
        imported = {
            (node.module or "").removeprefix("common_ml_utils.")
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("common_ml_utils.")
        }
        assert imported <= logged, module
