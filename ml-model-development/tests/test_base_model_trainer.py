"""The recipe on made-up parcels: what it registers and reports, and what it refuses before it registers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xgboost
from conftest import CONTRACT, make_parcels

from common_ml_utils import base_model_trainer
from common_ml_utils.base_model_trainer import BaseModelTrainer, ModelIdentity, TrainingData
from common_ml_utils.data_schemas.training_data_contract import PublishedContract, TrainingDataContract
from common_ml_utils.errors import (
    DataError,
    EmptyWindowError,
    ImmatureLabelsError,
    OneClassLabelsError,
    RegistryError,
    SchemaMismatchError,
)
from common_ml_utils.mlflow_utils import ModelRegistry, TrainingRun
from common_ml_utils.model_card import CardText
from common_ml_utils.native_models import XGBoostModel
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.release_bundle import ReasonCode, TrainingInterval
from common_ml_utils.slices import Slices
from common_ml_utils.test_doubles import ListRegistry
from common_ml_utils.training_sets import data_version

AS_OF = datetime(2024, 3, 1, tzinfo=UTC)
TEXT = CardText(
    owner="parcels-team",
    purpose="Gives the probability that a parcel is lost.",
    intended_use=("Looking for parcels.",),
    not_for=("Blaming carriers.",),
    data="Made-up parcels.",
    fairness="Heavy parcels may be lost more often, but should be found as often.",
    limits=("Made up.",),
    rows="parcels",
    positives="losses",
)


class BreakingRegistry(ListRegistry):
    """Fails when something is registered."""

    def register(self, bundle_folder: Path, bundle: object, run: TrainingRun) -> int:
        raise RegistryError("gone")


class ParcelTrainer(BaseModelTrainer):
    """Trains on the first 200 parcels, validates on the last 60 of them, measures on the rest."""

    identity = ModelIdentity("parcel-loss-model", "parcels", "parcels", ("look", "stop"))

    def __init__(self, frame: pd.DataFrame, folder: Path, registry: ModelRegistry) -> None:
        super().__init__(registry, folder / "reports", folder / "data", {"depth": 3})
        self.frame = frame

    def load(self) -> TrainingData:
        contract = PublishedContract.parse(json.dumps(CONTRACT))
        shape = TrainingDataContract(service=contract.service, key="parcel_id", label="lost")
        labelled = shape.validate_frame(self.frame, AS_OF)
        training, holdout = labelled.iloc[:200], labelled.iloc[200:]
        day = datetime(2024, 1, 1, tzinfo=UTC)
        return TrainingData(
            contract=contract,
            labelled=labelled,
            training=training,
            folds=[(training.iloc[:140], training.iloc[140:])],
            holdout=holdout,
            interval=TrainingInterval(
                start=day,
                end=day.replace(day=9),
                holdout_start=day.replace(day=9),
                holdout_end=day.replace(day=18),
                rows=len(training),
                positives=int(training["lost"].sum()),
            ),
            label="lost",
            label_policy_version="1",
            data_version=data_version("set", contract.sha256, labelled),
        )

    def fit(self, preprocessing: Preprocessing, frame: pd.DataFrame) -> XGBoostModel:
        matrix = xgboost.DMatrix(preprocessing.transform(frame), frame["lost"])
        parameters = {"objective": "binary:logistic", "max_depth": 3, "seed": 0, "nthread": 1}
        return XGBoostModel(xgboost.train(parameters, matrix, 15))

    def action_costs(self, frame: pd.DataFrame) -> np.ndarray:
        lost = frame["lost"].to_numpy()
        return np.column_stack([10.0 * lost, 1 + 2.0 * lost, 4.0 * (1 - lost)])

    def slices(self, frame: pd.DataFrame) -> Slices:
        heavy = frame["parcel_weight_kg"].to_numpy() > 8
        return {"weight: heavy": heavy, "weight: light": ~heavy}

    def card(self) -> CardText:
        return TEXT

    def reason_codes(self, features: Sequence[str]) -> dict[str, ReasonCode]:
        return {name: ReasonCode(code=name.upper(), text=f"Says <{name}>") for name in features}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ListRegistry, Path]:
    """One finished training: look, don't touch."""
    folder, registry = tmp_path_factory.mktemp("trained"), ListRegistry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_COMMIT", "fixed")
        ParcelTrainer(make_parcels(), folder, registry).train()
    return registry, folder / "reports" / "parcels"


def test_a_training_leaves_card_plots_metrics_and_notes_on_its_run(
    trained: tuple[ListRegistry, Path],
) -> None:
    registry, folder = trained
    [(_, run, files)] = registry.registered
    card = json.loads(run.documents["model_card/model_card.json"])
    assert set(run.documents) == {f"model_card/model_card.{kind}" for kind in ("html", "md", "json")}
    assert {"slices", "shap_summary", "shap_dependence", "calibration", "precision_recall"} <= set(
        run.figures
    )
    assert run.metrics["fold_1/auc_roc"] == run.metrics["validation_auc_roc"]
    assert run.metrics["auc_roc"] == pytest.approx(card["measures"]["overall"]["auc_roc"]["value"])
    assert run.metrics["brier"] == pytest.approx(card["measures"]["overall"]["brier"]["value"])
    assert (run.group, run.tags["owner"], run.tags["report"]) == ("training", "parcels-team", "parcels")
    assert "AUC ROC" in run.description
    assert run.model_description.startswith("Gives the probability")
    assert card["bundle_sha256"] == hashlib.sha256(files["manifest.json"]).hexdigest()
    assert card["model_version"] is None  # not known before it is registered
    kept = json.loads((folder / "model_card" / "model_card.json").read_text())
    assert kept == {**card, "model_version": 1}
    assert (folder / "plots" / "slices.png").read_bytes() == run.figures["slices"]


def test_the_page_and_the_report_hold_what_their_readers_need(trained: tuple[ListRegistry, Path]) -> None:
    _, folder = trained
    page = (folder / "train.html").read_text()
    assert 'href="model_card/model_card.html"' in page
    assert "200 parcels" in (folder / "model_card" / "model_card.html").read_text()
    assert "Says &lt;parcel_stops&gt;" in page
    assert "weight: heavy" in page
    assert "http" not in page
    report = json.loads((folder / "train.json").read_text())
    assert report["rows"] == {"training": 200, "holdout": 200} | {
        key: report["rows"][key] for key in ("training_positives", "holdout_positives")
    }
    for outcome in report["confusion"].values():
        assert sum(outcome.values()) == 200
    assert [part["name"] for part in report["measures"]["slices"]] == ["weight: heavy", "weight: light"]
    assert sum(part["rows"] for part in report["measures"]["slices"]) == 200
    assert set(report["seconds"]) == {"load", "validate", "fit", "evaluate", "register"}


def test_the_same_data_gives_the_same_bundle_card_and_plots_byte_for_byte(
    trained: tuple[ListRegistry, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_COMMIT", "fixed")
    again = ListRegistry()
    ParcelTrainer(make_parcels(), tmp_path, again).train()
    [(_, one, one_files)], [(_, two, two_files)] = trained[0].registered, again.registered
    assert one_files == two_files
    assert one.documents == two.documents
    assert one.figures == two.figures
    assert one == two


BROKEN = {
    "no rows": (lambda f: f.iloc[:0], EmptyWindowError, "no rows"),
    "one class": (lambda f: f.assign(lost=0), OneClassLabelsError, r"every label is \[0\]"),
    "one class in the holdout": (
        lambda f: f.assign(lost=np.where(np.arange(len(f)) < 200, f["lost"], 1)),
        OneClassLabelsError,
        "evaluation",
    ),
    "a feature without a value": (
        lambda f: f.assign(parcel_carrier=None),
        SchemaMismatchError,
        "parcel_carrier",
    ),
    "a feature with nothing but its default": (
        lambda f: f.assign(parcel_stops=np.nan),
        SchemaMismatchError,
        "parcel_stops",
    ),
    "a null where none may be": (
        lambda f: f.assign(parcel_weight_kg=np.nan),
        SchemaMismatchError,
        "parcel_weight_kg: 400 nulls",
    ),
    "a label younger than its delay": (
        lambda f: f.assign(label_known_at=f["label_known_at"] + pd.Timedelta(days=45)),
        ImmatureLabelsError,
        "labels were not known yet",
    ),
    "a missing column": (lambda f: f.drop(columns="parcel_stops"), SchemaMismatchError, "parcel_stops"),
    "an extra column": (lambda f: f.assign(lost_later=f["lost"]), SchemaMismatchError, "lost_later"),
    "text for a number": (lambda f: f.assign(parcel_weight_kg="heavy"), SchemaMismatchError, "not numeric"),
    "a number for text": (lambda f: f.assign(parcel_carrier=3), SchemaMismatchError, "not a string"),
    "an infinite value": (lambda f: f.assign(parcel_weight_kg=np.inf), SchemaMismatchError, "infinite"),
    "a label that is neither": (lambda f: f.assign(lost=2), SchemaMismatchError, "0 or 1"),
    "times without a zone": (
        lambda f: f.assign(event_timestamp=f["event_timestamp"].dt.tz_localize(None)),
        SchemaMismatchError,
        "time zone",
    ),
    "a repeated key": (lambda f: f.assign(parcel_id=1), SchemaMismatchError, "not unique"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_input_is_refused_by_name_and_registers_nothing(
    parcels: pd.DataFrame, tmp_path: Path, kind: str
) -> None:
    breaking, error, message = BROKEN[kind]
    registry = ListRegistry()
    with pytest.raises(error, match=message) as caught:
        ParcelTrainer(breaking(parcels), tmp_path, registry).train()
    assert isinstance(caught.value, DataError)
    assert registry.registered == []
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("broken", [np.ones(7, dtype=bool), np.ones(200)])
def test_a_slice_that_does_not_fit_registers_nothing(
    parcels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: np.ndarray
) -> None:
    monkeypatch.setattr(ParcelTrainer, "slices", lambda self, frame: {"odd": broken})
    registry = ListRegistry()
    with pytest.raises(SchemaMismatchError, match="slice 'odd'"):
        ParcelTrainer(parcels, tmp_path, registry).train()
    assert registry.registered == []


def test_a_feature_without_a_reason_code_registers_nothing(
    parcels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ParcelTrainer, "reason_codes", lambda self, features: {})
    registry = ListRegistry()
    with pytest.raises(SchemaMismatchError, match="without a reason code"):
        ParcelTrainer(parcels, tmp_path, registry).train()
    assert registry.registered == []


def test_a_registry_that_is_down_is_found_out_before_any_work(parcels: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="does not answer"):
        ParcelTrainer(parcels, tmp_path, ListRegistry(reachable=False)).train()
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_fails_in_the_end_leaves_no_report(
    parcels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Plots are slow and not what is tested here.
    monkeypatch.setattr(base_model_trainer, "model_plots", lambda *arguments: {})
    monkeypatch.setattr(base_model_trainer, "slice_plot", lambda *arguments: b"")
    with pytest.raises(RegistryError, match="gone"):
        ParcelTrainer(parcels, tmp_path, BreakingRegistry()).train()
    assert not (tmp_path / "reports").exists()
