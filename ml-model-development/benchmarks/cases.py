"""The models that are measured: the projects' own parameters, and 300 trees on 30 features; data made up."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.drift_reference import reference_statistics
from common_ml_utils.mlflow_utils import save_bundle_model
from common_ml_utils.native_models import LightGBMModel, NativeModel, XGBoostModel
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.release_bundle import (
    BundleContents,
    ReasonCode,
    ReleaseBundle,
    TrainingInterval,
    golden_rows,
    write_bundle,
)

MODELS = Path(__file__).parents[1] / "models"
TRAINING_ROWS = 20_000
CATEGORIES = ["none", "no", "yes", "month-to-month", "one year"]


@dataclass(frozen=True)
class Spec:
    """What is trained: `parameters` are those of the library's scikit-learn class."""

    name: str
    kind: str
    numeric: int
    categorical: int
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A bundle, the frame it is measured on, and its peers in the same process."""

    name: str
    folder: Path
    bundle: ReleaseBundle
    frame: pd.DataFrame
    sklearn: Any
    native: NativeModel
    pyfunc: Any


def specifications() -> list[Spec]:
    """Return the four models."""
    fraud = _parameters("fraud_detection_xgboost", "FraudHyperparameters")
    churn = _parameters("customer_churn_lightgbm", "ChurnHyperparameters")
    wide = {"n_estimators": 300, "learning_rate": 0.05}
    return [
        Spec("fraud model", "xgboost", 18, 0, fraud),
        Spec("churn model", "lightgbm", 9, 10, churn),
        Spec("XGBoost, 300 trees of depth 6, 30 features", "xgboost", 30, 0, {**wide, "max_depth": 6}),
        Spec("LightGBM, 300 trees of 31 leaves, 30 features", "lightgbm", 30, 0, {**wide, "num_leaves": 31}),
    ]


def build(spec: Spec, rows: int, folder: Path) -> Case:
    """Train, write and load the bundle, and load the same model as its peers do; `rows` are measured on."""
    contract = _contract(spec)
    frame, labels = _made_up(spec, rows)
    training = frame.head(TRAINING_ROWS)
    preprocessing = Preprocessing.fit(contract.service, training)
    matrix = preprocessing.transform(training)
    estimator, model = _fitted(spec, preprocessing, matrix, labels[:TRAINING_ROWS])
    day = datetime(2026, 1, 1, tzinfo=UTC)
    contents = BundleContents(
        model_name="measured-model",
        model=model,
        contract=contract,
        preprocessing=preprocessing,
        thresholds={"stop": 0.5},
        reference=reference_statistics(training, preprocessing, model.scores(matrix)),
        golden=golden_rows(training.head(1000), preprocessing, model),
        reason_codes={name: ReasonCode(code="MADE_UP", text="made up") for name in preprocessing.names},
        training=TrainingInterval(
            start=day, end=day, holdout_start=day, holdout_end=day, rows=len(training), positives=1
        ),
        label_policy_version=1,
        git_commit="unknown",
        data_version="0" * 64,
    )
    bundle = ReleaseBundle.load(folder / "bundle", write_bundle(contents, folder / "bundle"))
    return Case(spec.name, folder / "bundle", bundle, frame, estimator, bundle.model, _pyfunc(bundle, folder))


def _parameters(project: str, name: str) -> dict[str, Any]:
    """Return a project's own parameters, read by file: every project's package is called `src`."""
    spec = importlib.util.spec_from_file_location(f"{project}_config", MODELS / project / "src" / "config.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"no config.py in {project}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where Pydantic looks up the annotations
    spec.loader.exec_module(module)
    return getattr(module, name)().model_dump(exclude={"seed", "n_jobs"})


def _pyfunc(bundle: ReleaseBundle, folder: Path) -> Any:
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    save_bundle_model(folder / "bundle", bundle, folder / "model")
    return mlflow.pyfunc.load_model(str(folder / "model"))


def _contract(spec: Spec) -> PublishedContract:
    features = [(name, "float64") for name in _numeric(spec)] + [(name, "string") for name in _texts(spec)]
    return PublishedContract.parse(
        json.dumps(
            {
                "name": "measured_v1",
                "version": 1,
                "entities": [{"name": "thing", "join_key": "thing_id", "type": "int64"}],
                "views": [{"name": "view", "entity": "thing", "ttl_seconds": 1, "fields": []}],
                "features": [{"name": name, "source": "view", "type": kind} for name, kind in features],
            }
        )
    )


def _numeric(spec: Spec) -> list[str]:
    return [f"thing_amount_mean_{i}d" for i in range(spec.numeric)]


def _texts(spec: Spec) -> list[str]:
    return [f"thing_contract_{i}" for i in range(spec.categorical)]


def _made_up(spec: Spec, rows: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return features, one in twenty of them null, and labels that hang on many of them."""
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 50, (rows, spec.numeric))
    logits = np.log1p(values) @ rng.normal(0, 0.6, spec.numeric)
    logits += np.sin(values[:, :6] / 20).sum(axis=1)
    values[rng.random(values.shape) < 0.05] = np.nan
    frame = pd.DataFrame(values, columns=_numeric(spec))
    for name in _texts(spec):
        codes = rng.integers(0, len(CATEGORIES), rows)
        logits += 0.5 * np.sin(codes * len(name))
        texts = np.array(CATEGORIES, object)[codes]
        texts[rng.random(rows) < 0.05] = None
        frame[name] = texts
    chance = 1 / (1 + np.exp(-(logits - np.quantile(logits, 0.9))))
    return frame, (rng.random(rows) < chance).astype(int)


def _fitted(
    spec: Spec, preprocessing: Preprocessing, matrix: np.ndarray, labels: np.ndarray
) -> tuple[Any, NativeModel]:
    if spec.kind == "xgboost":
        import xgboost

        estimator = xgboost.XGBClassifier(**spec.parameters, n_jobs=1, random_state=0).fit(matrix, labels)
        return estimator, XGBoostModel(estimator.get_booster())
    import lightgbm

    classifier = lightgbm.LGBMClassifier(**spec.parameters, n_jobs=1, random_state=0, verbosity=-1)
    classifier.fit(matrix, labels, categorical_feature=preprocessing.categorical_indexes)
    return classifier, LightGBMModel(classifier.booster_)
