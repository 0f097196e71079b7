"""Two small problems that are really trained: rare frauds in a stream of payments, subscribers who leave.

The truth stands in a feature store in memory; a saboteur may change what the training gets of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import xgboost
from promotion_fakes import Book, Shelf

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.drift_reference import reference_statistics
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient, LabelPolicy
from common_ml_utils.native_models import LightGBMModel, NativeModel, XGBoostModel
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.promotion.classifier_gate import (
    Candidate,
    ClassifierProject,
    SampledQuery,
    TrainingSource,
)
from common_ml_utils.promotion.gate import PromotionGate, Verdict
from common_ml_utils.release_bundle import (
    BundleContents,
    Manifest,
    ReasonCode,
    ReleaseBundle,
    TrainingInterval,
    golden_rows,
    write_bundle,
)
from common_ml_utils.settings import GateSettings
from common_ml_utils.slices import Slices
from common_ml_utils.training_sets import TrainingSetStore, data_version

START = pd.Timestamp("2024-01-01", tz="UTC")
DAY = timedelta(days=1)
KINDS = {"size": "float64", "count": "int64", "risk": "float64", "sort": "string"}
FEATURES = [{"name": name, "source": "profile", "type": kind} for name, kind in KINDS.items()]
Sabotage = Callable[[pd.DataFrame], pd.DataFrame]


def code_of(feature: str) -> ReasonCode:
    return ReasonCode(code=feature.upper(), text=f"the {feature} is high")


def untouched(rows: pd.DataFrame) -> pd.DataFrame:
    return rows


def contract_of(features: Sequence[dict[str, Any]] = FEATURES) -> PublishedContract:
    document = {
        "name": "simulated_v1",
        "version": 1,
        "entities": [{"name": "customer", "join_key": "customer_id", "type": "int64"}],
        "request": [],
        "views": [],
        "features": list(features),
    }
    return PublishedContract.parse(json.dumps(document))


class MemoryStore(FeatureStoreClient):
    """The truth: rows with features and labels, as of `now`."""

    def __init__(self, truth: pd.DataFrame, delay_days: int) -> None:
        self.truth = truth
        self.delay_days = delay_days
        self.now: datetime = truth["label_known_at"].max().to_pydatetime()
        self.published = contract_of()

    def contract(self, service_name: str) -> PublishedContract:
        return self.published

    def label_policy(self, label_name: str) -> LabelPolicy:
        return LabelPolicy(label_name, self.delay_days, "1")

    def dataset_id(self) -> str:
        return "made up"

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        if "max(event_timestamp)" in statement:
            known = self.truth[self.truth["label_known_at"] <= parameters[0]]
            return [{"until": None if known.empty else known["event_timestamp"].max()}]
        rows = self.truth[self.truth["row_id"].isin(parameters[0])]
        return [
            {"key": key, "label": label} for key, label in zip(rows["row_id"], rows["label"], strict=True)
        ]

    def features_as_of(
        self,
        contract: PublishedContract,
        entities: EntityQuery,
        windows: Sequence[tuple[datetime, datetime]],
        description: str = "features",
        **options: Any,
    ) -> pd.DataFrame:
        assert isinstance(entities, SampledQuery)
        assert entities.statement(*windows[0]).count("ANY") == 1
        return self.truth[self.truth["row_id"].isin(entities.keys)]


@dataclass
class Problem:
    """A model project in memory: its truth, how it is split and fitted, and what its gate asks for."""

    store: MemoryStore
    gate: GateSettings
    interval: Callable[[datetime], TrainingInterval]
    split: Callable[[pd.DataFrame, Manifest | TrainingInterval], tuple[pd.DataFrame, pd.DataFrame]]
    seen: Callable[[FeatureStoreClient, TrainingSetStore, Candidate, pd.DataFrame], np.ndarray]
    fit: Callable[[np.ndarray, np.ndarray, int], NativeModel]
    folder: Path
    registry: Shelf = field(default_factory=Shelf)
    ledger: Book = field(default_factory=Book)

    @property
    def kept(self) -> TrainingSetStore:
        return TrainingSetStore(self.folder / "training_sets")

    def labelled(self, interval: TrainingInterval) -> pd.DataFrame:
        """Return training and holdout rows of the truth."""
        times = self.store.truth["event_timestamp"]
        training = (times >= interval.start) & (times < interval.end)
        holdout = (times >= interval.holdout_start) & (times < interval.holdout_end)
        return self.store.truth[training | holdout].reset_index(drop=True)

    def train(
        self,
        as_of: datetime,
        seed: int = 0,
        loaded: Sabotage = untouched,
        fitted: Sabotage = untouched,
    ) -> Candidate:
        """Train as of a time and stage the result; `loaded` changes all rows, `fitted` what is fitted."""
        interval = self.interval(as_of)
        rows = loaded(self.labelled(interval))
        contract = self.store.published
        version = data_version("made up", contract.sha256, rows)
        self.kept.save(version, rows)
        training, holdout = self.split(rows, interval)
        training = fitted(training)
        preprocessing = Preprocessing.fit(contract.service, training)
        labels = training["label"].to_numpy()
        model = self.fit(preprocessing.transform(training), labels, seed)
        scores = model.scores(preprocessing.transform(holdout))
        contents = BundleContents(
            model_name="simulated",
            model=model,
            contract=contract,
            preprocessing=preprocessing,
            thresholds={"act": 0.5},
            reference=reference_statistics(training, preprocessing, scores),
            golden=golden_rows(holdout, preprocessing, model),
            reason_codes={name: code_of(name) for name in preprocessing.names},
            training=interval.model_copy(update={"rows": len(training), "positives": int(labels.sum())}),
            label_policy_version="1",
            git_commit="abc",
            data_version=version,
        )
        folder = self.folder / f"bundle-{len(self.registry.versions)}"
        return self.registry.stage("simulated", ReleaseBundle.load(folder, write_bundle(contents, folder)))

    def judge(self, **changed: Any) -> Verdict:
        """Run the whole gate on what is staged."""
        gate = self.gate.model_copy(update=changed)
        source = TrainingSource(
            table=("labels", "fct_labels"),
            key="row_id",
            label="label",
            label_name="simulated",
            group="customer_id",
            request={},
            latest=lambda client: self.store.now,
            load=lambda client, contract, manifest: self.labelled(manifest.training),
            split=self.split,
            seen=self.seen,
            slices_of=slices_of,
        )
        reports = self.folder / "reports"
        project = ClassifierProject(source, self.store, self.kept, gate, reports)
        return PromotionGate(
            model_name="simulated",
            registry=self.registry,
            ledger=self.ledger,
            settings=gate,
            project=project,
            report=reports / "gate.json",
        ).run()


def slices_of(frame: pd.DataFrame) -> Slices:
    sort = frame["sort"].to_numpy()
    return {f"sort: {name}": sort == name for name in ("a", "b", "c")}


def made_up(rows: int, customers: int, offset: float, seed: int) -> pd.DataFrame:
    """Return rows with features and labels whose odds hang on all features."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "row_id": np.arange(rows),
            "customer_id": rng.integers(0, customers, rows),
            "size": rng.gamma(2, 20, rows),
            "count": rng.poisson(4, rows).astype(float),
            "risk": rng.beta(1, 6, rows),
            "sort": rng.choice(["a", "b", "c"], rows),
        }
    )
    odds = offset + 0.06 * frame["size"] + 14 * frame["risk"] - 0.3 * frame["count"] + (frame["sort"] == "a")
    frame["label"] = (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype("int8")
    return frame


def payments(folder: Path, days: int = 60, seed: int = 1) -> Problem:
    """Fraud-like: 500 payments a day, one in twelve a fraud; two weeks of training, a week of holdout."""
    truth = made_up(500 * days, 900, -8.0, seed)
    truth["event_timestamp"] = (START + pd.to_timedelta(truth["row_id"] / 500, unit="D")).astype(
        "datetime64[us, UTC]"
    )
    truth["label_known_at"] = truth["event_timestamp"] + 2 * DAY

    def interval(as_of: datetime) -> TrainingInterval:
        holdout_end = as_of - 2 * DAY
        end = holdout_end - 9 * DAY
        return TrainingInterval(
            start=end - 14 * DAY,
            end=end,
            holdout_start=holdout_end - 7 * DAY,
            holdout_end=holdout_end,
            rows=0,
            positives=0,
        )

    def split(rows: pd.DataFrame, of: Manifest | TrainingInterval) -> tuple[pd.DataFrame, pd.DataFrame]:
        of = of.training if isinstance(of, Manifest) else of
        training = rows["event_timestamp"] < of.end
        return rows[training].reset_index(drop=True), rows[~training].reset_index(drop=True)

    def seen(client: Any, kept: Any, champion: Candidate, holdout: pd.DataFrame) -> np.ndarray:
        return (holdout["event_timestamp"] < champion.bundle.manifest.training.end).to_numpy()

    def fit(matrix: np.ndarray, labels: np.ndarray, seed: int) -> NativeModel:
        parameters = {
            "objective": "binary:logistic",
            "max_depth": 3,
            "eta": 0.2,
            "min_child_weight": 5,
            "subsample": 0.8,
            "seed": seed,
            "nthread": 1,
            "max_bin": 64,
        }
        return XGBoostModel(xgboost.train(parameters, xgboost.DMatrix(matrix, labels), 30))

    gate = GateSettings(metric="average_precision", floor=0.2)
    return Problem(MemoryStore(truth, 2), gate, interval, split, seen, fit, folder)


def subscribers(folder: Path, rows: int = 6000, seed: int = 2) -> Problem:
    """Churn-like: one subscriber in four leaves, every fifth is held out for good; more join with time."""
    truth = made_up(rows, rows, -5.2, seed)
    truth["customer_id"] = truth["row_id"]
    truth["event_timestamp"] = (START + pd.to_timedelta(truth["row_id"] / 100, unit="D")).astype(
        "datetime64[us, UTC]"
    )
    truth["label_known_at"] = truth["event_timestamp"] + 2 * DAY

    def interval(as_of: datetime) -> TrainingInterval:
        end, start = as_of - 2 * DAY, START.to_pydatetime()
        return TrainingInterval(
            start=start, end=end, holdout_start=start, holdout_end=end, rows=0, positives=0
        )

    def split(rows: pd.DataFrame, of: Manifest | TrainingInterval) -> tuple[pd.DataFrame, pd.DataFrame]:
        held_out = rows["row_id"] * 7919 % 5 == 0
        return rows[~held_out].reset_index(drop=True), rows[held_out].reset_index(drop=True)

    def seen(client: Any, kept: Any, champion: Candidate, holdout: pd.DataFrame) -> np.ndarray:
        return np.zeros(len(holdout), dtype=bool)

    def fit(matrix: np.ndarray, labels: np.ndarray, seed: int) -> NativeModel:
        parameters = {
            "objective": "binary",
            "num_leaves": 4,
            "learning_rate": 0.3,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "seed": seed,
            "num_threads": 1,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(matrix, labels, categorical_feature=[3])
        return LightGBMModel(lightgbm.train(parameters, data, num_boost_round=20))

    gate = GateSettings(metric="auc_roc", floor=0.6, staleness_days=31)
    return Problem(MemoryStore(truth, 2), gate, interval, split, seen, fit, folder)


def day(number: float) -> datetime:
    """Return the midnight that begins a day of the simulation, or a time in it."""
    return (START + number * DAY).to_pydatetime().astimezone(UTC)
