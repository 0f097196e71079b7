"""What the tests of every model project stand on in place of real servers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common_ml_utils.mlflow_utils import ModelRegistry, RegisteredBundle, TrainingRun

NOBODY = "http://127.0.0.1:1"


def unreachable_places(folder: Path) -> dict[str, Any]:
    """Return the settings' addresses of servers that do not answer, and folders below `folder`."""
    nowhere = {"host": "127.0.0.1", "port": 1, "name": "none", "user": "none", "password": "none"}
    return {
        **{
            f"{db}_{key}": value
            for db in ("feature_store_db", "decisions_db")
            for key, value in nowhere.items()
        },
        "mlflow_tracking_uri": NOBODY,
        "data_dir": folder / "data",
        "reports_dir": folder / "reports",
    }


class ListRegistry(ModelRegistry):
    """Keeps what is registered in a list: bundle, run, and the bundle's files. Away when told so."""

    def __init__(self, *, reachable: bool = True) -> None:
        super().__init__(NOBODY)
        self.reachable = reachable
        self.registered: list[tuple[Any, TrainingRun, Mapping[str, bytes]]] = []

    def check_reachable(self) -> None:
        """Answer, unless it is away: then raise what the real one raises."""
        if not self.reachable:
            super().check_reachable()

    def register(self, bundle_folder: Path, bundle: Any, run: TrainingRun) -> int:
        """Keep the bundle, and return its number in the list, from 1."""
        files = {path.name: path.read_bytes() for path in bundle_folder.iterdir()}
        self.registered.append((bundle, run, files))
        return len(self.registered)

    def latest(self) -> RegisteredBundle[Any]:
        """Return what was registered last."""
        bundle = self.registered[-1][0]
        return RegisteredBundle(bundle.manifest.model_name, len(self.registered), bundle)
