"""Training sets kept as Parquet under their data version: the gate measures on the rows of a training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd

KEPT = 3


def data_version(dataset_id: str, contract_sha256: str, frame: pd.DataFrame) -> str:
    """Return the identity of a training set: SHA-256 over raw dataset, feature contract and every value."""
    rows = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    parts = {
        "dataset_id": dataset_id,
        "contract": contract_sha256,
        "columns": [[name, str(dtype)] for name, dtype in frame.dtypes.items()],
        "rows": len(frame),
        "content": hashlib.sha256(rows.tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class TrainingSetStore:
    """A folder of training sets; the newest few are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, version: str, frame: pd.DataFrame) -> None:
        """Write a training set under its version, whole or not at all, and drop the oldest ones."""
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".{version}.partial"
        frame.to_parquet(partial, index=False)
        partial.replace(self._folder / f"{version}.parquet")
        newest_first = sorted(
            self._folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime, reverse=True
        )
        for old in newest_first[KEPT:]:
            old.unlink(missing_ok=True)

    def load(self, version: str, dataset_id: str, contract_sha256: str) -> pd.DataFrame | None:
        """Return the training set of a version, or None when it is not here or no longer hashes to it."""
        path = self._folder / f"{version}.parquet"
        if not path.exists():
            return None
        frame = pd.read_parquet(path)
        return frame if data_version(dataset_id, contract_sha256, frame) == version else None
