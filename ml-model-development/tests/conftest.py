"""A small made-up feature service, its data and bundles, for the tests of common_ml_utils."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.drift_reference import reference_statistics
from common_ml_utils.native_models import XGBoostModel
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.release_bundle import (
    BundleContents,
    ReasonCode,
    ReleaseBundle,
    TrainingInterval,
    golden_rows,
    write_bundle,
)

CONTRACT: dict[str, Any] = {
    "name": "parcel_loss_v1",
    "version": 1,
    "entities": [{"name": "parcel", "join_key": "parcel_id", "type": "int64"}],
    "request": [{"name": "asked_at", "type": "unix_timestamp"}],
    "views": [
        {
            "name": "parcel_profile",
            "entity": "parcel",
            "ttl_seconds": 86400,
            "fields": [{"name": "parcel_full_stops", "type": "int64"}],
        }
    ],
    "on_demand": None,
    "features": [
        {"name": "parcel_weight_kg", "source": "parcel_profile", "type": "float64", "on_missing": "fail"},
        {
            "name": "parcel_stops",
            "source": "parcel_profile",
            "type": "int64",
            "on_missing": "default",
            "default": 0,
        },
        {"name": "parcel_carrier", "source": "parcel_profile", "type": "string", "on_missing": "null"},
    ],
}


REASON_CODES = {
    "parcel_weight_kg": ReasonCode(code="HEAVY", text="The parcel is heavy"),
    "parcel_stops": ReasonCode(code="LONG_WAY", text="The parcel goes a long way"),
    "parcel_carrier": ReasonCode(code="CARRIER", text="The carrier loses more parcels than others"),
}


@pytest.fixture
def contract() -> PublishedContract:
    return PublishedContract.parse(json.dumps(CONTRACT))


@pytest.fixture
def parcels() -> pd.DataFrame:
    return make_parcels()


def make_parcels() -> pd.DataFrame:
    """Return 400 labelled parcels: heavy ones with many stops are lost more often."""
    rng = np.random.default_rng(7)
    weight, stops = rng.gamma(2, 3, 400), rng.integers(0, 9, 400)
    lost = rng.random(400) < 1 / (1 + np.exp(4 - 0.3 * weight - 0.3 * stops))
    start = pd.Timestamp("2024-01-01", tz="UTC")
    return pd.DataFrame(
        {
            "parcel_id": np.arange(400),
            "event_timestamp": start + pd.to_timedelta(np.arange(400), unit="h"),
            "parcel_weight_kg": weight,
            "parcel_stops": stops,
            "parcel_carrier": rng.choice(["north", "south", "east"], 400),
            "lost": lost.astype(int),
            "label_known_at": start + pd.to_timedelta(np.arange(400) + 48, unit="h"),
        }
    )


def make_contents(
    contract: PublishedContract, parcels: pd.DataFrame, *, trees: int = 20, depth: int = 3
) -> BundleContents:
    """Fit a small model on the parcels and put a bundle together."""
    preprocessing = Preprocessing.fit(contract.service, parcels)
    matrix, labels = preprocessing.transform(parcels), parcels["lost"].to_numpy()
    parameters = {"objective": "binary:logistic", "max_depth": depth, "seed": 0, "nthread": 1}
    model = XGBoostModel(xgboost.train(parameters, xgboost.DMatrix(matrix, labels), trees))
    day = datetime(2024, 1, 1, tzinfo=UTC)
    return BundleContents(
        model_name="parcel-loss-model",
        model=model,
        contract=contract,
        preprocessing=preprocessing,
        thresholds={"look": 0.2, "stop": 0.6},
        reference=reference_statistics(parcels, preprocessing, model.scores(matrix)),
        golden=golden_rows(parcels, preprocessing, model),
        reason_codes=REASON_CODES,
        training=TrainingInterval(
            start=day,
            end=day.replace(day=8),
            holdout_start=day.replace(day=10),
            holdout_end=day.replace(day=17),
            rows=len(parcels),
            positives=int(labels.sum()),
        ),
        label_policy_version="1",
        git_commit="abc",
        data_version="d" * 64,
    )


@pytest.fixture
def contents(contract: PublishedContract, parcels: pd.DataFrame) -> BundleContents:
    return make_contents(contract, parcels)


@pytest.fixture
def bundle_folder(contents: BundleContents, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    write_bundle(contents, folder)
    return folder


@pytest.fixture
def bundle(bundle_folder: Path) -> ReleaseBundle:
    return ReleaseBundle.load(bundle_folder)
