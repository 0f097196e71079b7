"""What stands at the source of a model version, asked of MLflow's own stores."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mlflow_guard import formats, paths
from mlflow_guard.errors import RefusedError

MAX_FILES = 2_000
MAX_DEPTH = 12


def check(source: str) -> None:
    """Raise RefusedError unless the source holds an MLmodel that reads data, and no pickle; blocks."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - after its settings
    from mlflow.server import handlers  # noqa: PLC0415

    try:
        if source.startswith("models:/"):
            model = handlers._get_tracking_store().get_logged_model(source.removeprefix("models:/"))
            source = model.artifact_location
        folder = paths.store_path(source)
        store = handlers._get_artifact_repo_mlflow_artifacts()
        files = _files(store, folder, 0)
        mlmodel = f"{folder.rstrip('/')}/{formats.MLMODEL}"
        if mlmodel not in files:
            raise RefusedError(
                400, "there is no MLmodel file at the source: log the model before it is registered"
            )
        for name in files:
            formats.check_name(name)
        with tempfile.TemporaryDirectory() as scratch:
            formats.check_mlmodel(Path(store.download_artifacts(mlmodel, scratch)).read_bytes())
    except MlflowException as error:
        raise RefusedError(400, f"the source can't be read: {error.error_code}") from None


def _files(store: Any, folder: str, depth: int) -> set[str]:
    if depth > MAX_DEPTH:
        raise RefusedError(400, "the source has too many folders inside each other")
    found: set[str] = set()
    for each in store.list_artifacts(folder):
        found |= _files(store, each.path, depth + 1) if each.is_dir else {each.path}
        if len(found) > MAX_FILES:
            raise RefusedError(400, f"the source has more than {MAX_FILES} files")
    return found
