"""Rules of the house that a reader would otherwise have to check by eye."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import common_ml_utils
from common_ml_utils.base_model_trainer import BaseModelTrainer

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("common_ml_utils/**/*.py"), *ROOT.glob("models/*/src/*.py")])
MODULES = [
    module.name
    for module in pkgutil.walk_packages(common_ml_utils.__path__, "common_ml_utils.")
    # These two run under MLflow only.
    if module.name not in ("common_ml_utils.bundle_model", "common_ml_utils.recommender_model")
]
OTHER_ROOTS = (
    "feast_repository",
    "data_transformation_pipelines",
    "common_service_libs",
    "local_stack",
    "app",
)
PICKLE = ("pickle", "cloudpickle", "joblib", "dill")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_roots_code_and_no_pickle_is_imported(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert not imported & {*OTHER_ROOTS, *PICKLE}
    if "common_ml_utils" in path.parts:
        assert "src" not in imported, "shared code knows no model project"


def test_the_trainer_has_at_most_three_hooks_and_its_recipe_fits_a_page() -> None:
    assert len(BaseModelTrainer.__abstractmethods__) <= 3
    assert len(inspect.getsource(BaseModelTrainer.train).splitlines()) <= 40


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
