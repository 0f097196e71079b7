"""Small release bundles and scored rows for tests, in the format of docs/architecture.md."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from advanced_monitoring_scripts.champion_bundle import ChampionBundle, parse_bundle, verify_bundle

MODEL = "fraud-detection-model"
CONTRACT = {
    "name": "fraud_detection_v1",
    "version": 1,
    "entities": [{"name": "customer", "join_key": "customer_id", "type": "int64"}],
    "request": [
        {"name": "tx_amount", "type": "float64"},
        {"name": "tx_timestamp", "type": "unix_timestamp"},
    ],
    "on_demand": {
        "view": "transaction_on_demand",
        "features": [
            {"name": "tx_amount", "expression": "tx_amount"},
            {"name": "tx_is_weekend", "expression": "where(weekday(tx_timestamp) >= 5, 1, 0)"},
        ],
    },
    "features": [
        {"name": "tx_amount", "source": "transaction_on_demand", "type": "float64"},
        {"name": "tx_is_weekend", "source": "transaction_on_demand", "type": "float64"},
        {"name": "terminal_fraud_risk_7d", "source": "terminal_daily", "type": "float64"},
    ],
}


def numeric(values: np.ndarray) -> dict[str, Any]:
    """Return the statistics of a sample on twenty bins of equal shares."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 21)[1:-1], method="lower"))
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "counts": counts.tolist(), "null_count": 0}


def sample(rows: int, seed: int, *, amounts: float = 50.0) -> dict[str, np.ndarray]:
    """Draw features and a score; `amounts` shifts the amounts' scale."""
    rng = np.random.default_rng(seed)
    return {
        "tx_amount": rng.gamma(2.0, amounts / 2, rows),
        "tx_is_weekend": (rng.uniform(size=rows) < 2 / 7).astype(float),
        "terminal_fraud_risk_7d": np.where(rng.uniform(size=rows) < 0.1, rng.beta(1, 5, rows), 0.0),
        "score": rng.beta(1, 30, rows),
    }


def reference() -> dict[str, Any]:
    """Return `reference.json` of a training sample."""
    return {name: numeric(values) for name, values in sample(50_000, 0).items()}


def write_bundle(folder: Path, **changed: Any) -> str:
    """Write a bundle and return its identity; `changed` replaces the content of a file by name."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = {
        "model.ubj": b"a model",
        "preprocessing.json": {"format_version": 1, "features": []},
        "feature_service.json": CONTRACT,
        "thresholds.json": {"review": 0.1, "decline": 0.5},
        "reference.json": reference(),
        "golden.json": [],
    } | {f"{name}.json": value for name, value in changed.items()}
    files = {
        name: content if isinstance(content, bytes) else json.dumps(content).encode()
        for name, content in documents.items()
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = {
        "format_version": 1,
        "model_name": MODEL,
        "model_kind": "xgboost",
        "model_file": "model.ubj",
        "feature_service": "fraud_detection_v1",
        "label_policy_version": "1",
        "training": {"start": "2026-09-01", "end": "2026-10-01", "rows": 50_000, "positives": 400},
        "git_commit": "unknown",
        "data_version": "1",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    content = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_bundle(folder: Path, **metrics: float) -> ChampionBundle:
    """Write and read back a bundle."""
    sha256 = write_bundle(folder)
    contents, identity = verify_bundle(folder, sha256)
    return parse_bundle(contents, identity, MODEL, 3, metrics)
