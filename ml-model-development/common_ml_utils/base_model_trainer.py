"""The training recipe all models follow: load -> validate -> fit -> evaluate -> bundle -> register -> report.

A model supplies three hooks: where its data comes from, how it is fitted and what its actions cost. It may
add metrics, slices and the words of its model card. Training ends with a challenger under the alias
`staging`; whether it is better is the gate's question.
"""

from __future__ import annotations

import inspect
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common_ml_utils.data_schemas.training_data_contract import (
    PublishedContract,
    require_both_classes,
    require_values,
)
from common_ml_utils.data_versions import dvc_version
from common_ml_utils.drift_reference import reference_statistics
from common_ml_utils.evaluation_utils import ordered_thresholds, ranking_and_calibration
from common_ml_utils.explanations import ReasonCodes
from common_ml_utils.mlflow_utils import ModelRegistry, TrainingRun, git_commit
from common_ml_utils.model_card import (
    Card,
    CardText,
    HoldoutMeasures,
    ScoredRows,
    card_files,
    example_reasons,
    importance_of,
    measure_holdout,
)
from common_ml_utils.native_models import NativeModel
from common_ml_utils.plots import SHAP_ROWS, ShapSample, model_plots, slice_plot
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.release_bundle import (
    BundleContents,
    ReasonCode,
    ReleaseBundle,
    TrainingInterval,
    golden_rows,
    read_reason_codes,
    write_bundle,
)
from common_ml_utils.reports import StepClock
from common_ml_utils.slices import Slices
from common_ml_utils.training_report import model_note, run_metrics, run_note, write_training_report
from common_ml_utils.training_sets import TrainingSetStore


@dataclass(frozen=True)
class TrainingData:
    """Labelled frames of one grain, already checked against the contract.

    `labelled` is everything that was fetched and has the identity `data_version`; `training` fits the model
    that is released; `folds` are (fit, validation) pairs inside `training`, for thresholds; `holdout`
    measures it.
    """

    contract: PublishedContract
    labelled: pd.DataFrame
    training: pd.DataFrame
    folds: Sequence[tuple[pd.DataFrame, pd.DataFrame]]
    holdout: pd.DataFrame
    interval: TrainingInterval
    label: str
    label_policy_version: str
    data_version: str


@dataclass(frozen=True)
class ModelIdentity:
    """The names of a model in the registry, in MLflow's experiments and in reports, and of its thresholds."""

    model_name: str
    experiment: str
    report: str
    thresholds: tuple[str, str]


@dataclass(frozen=True)
class TrainingOutcome:
    """The challenger that training registered."""

    version: int
    bundle_sha256: str
    metrics: dict[str, float]


class BaseModelTrainer(ABC):
    """Runs the recipe; subclasses fill in the three hooks and may add metrics of their own."""

    identity: ModelIdentity

    def __init__(
        self, registry: ModelRegistry, reports_dir: Path, data_dir: Path, parameters: Mapping[str, Any]
    ):
        self.registry = registry
        self.reports_dir = reports_dir / self.identity.report
        self.data_dir = data_dir
        self.training_sets = TrainingSetStore(data_dir / "training_sets" / self.identity.report)
        self.parameters = dict(parameters)
        self.clock = StepClock()

    @abstractmethod
    def load(self) -> TrainingData:
        """Fetch, check and split the data."""

    @abstractmethod
    def fit(self, preprocessing: Preprocessing, frame: pd.DataFrame) -> NativeModel:
        """Fit the model on a labelled frame; the same frame and settings give the same bytes."""

    @abstractmethod
    def action_costs(self, frame: pd.DataFrame) -> np.ndarray:
        """Return the cost of the three actions, mildest first, shape (rows, 3), given the true labels."""

    def own_metrics(self, frame: pd.DataFrame, scores: np.ndarray) -> dict[str, float]:
        """Return metrics only this model has."""
        return {}

    def slices(self, frame: pd.DataFrame) -> Slices:
        """Return the groups of rows that are also measured apart."""
        return {}

    def card(self) -> CardText | None:
        """Return the words of the model card."""
        return None

    def reason_codes(self, features: Sequence[str]) -> dict[str, ReasonCode]:
        """Return feature -> reason code: the project's table, which stands beside its trainer."""
        return read_reason_codes(Path(inspect.getfile(type(self))).with_name("reason_codes.json"), features)

    def train(self) -> TrainingOutcome:
        """Run the recipe and return the registered challenger; nothing is registered when a step fails."""
        self.registry.check_reachable()
        with self.clock.step("load"):
            data = self.load()
            require_values(data.training, data.contract.service)
            self.training_sets.save(data.data_version, data.labelled)
        with self.clock.step("validate"):
            validation = self._validate(data)
        with self.clock.step("fit"):
            preprocessing = Preprocessing.fit(data.contract.service, data.training)
            model = self._fitted(preprocessing, data.training, data.label)
        with self.clock.step("evaluate"):
            result = self._evaluate(data, validation, preprocessing, model)
        with self.clock.step("register"), tempfile.TemporaryDirectory() as folder:
            bundle = self._bundle(Path(folder) / "bundle", data, result)
            card = self._card(data, result, bundle)
            version = self.registry.register(Path(folder) / "bundle", bundle, self._run(card))
        write_training_report(self.reports_dir, replace(card, version=version), self.clock.seconds)
        return TrainingOutcome(version, bundle.sha256, result.measures.metrics)

    def _validate(self, data: TrainingData) -> ValidationOutcome:
        """Fit and score every fold; choose the thresholds on scores of rows their model had not seen."""
        frames, scores, fold_metrics = [], [], []
        for fit_rows, validation_rows in data.folds:
            preprocessing = Preprocessing.fit(data.contract.service, fit_rows)
            model = self._fitted(preprocessing, fit_rows, data.label)
            unseen = model.scores(preprocessing.transform(validation_rows))
            frames.append(validation_rows)
            scores.append(unseen)
            fold_metrics.append(ranking_and_calibration(validation_rows[data.label].to_numpy(), unseen))
        cuts = ordered_thresholds(np.concatenate(scores), self.action_costs(pd.concat(frames)))
        return ValidationOutcome(dict(zip(self.identity.thresholds, cuts, strict=True)), fold_metrics)

    def _fitted(self, preprocessing: Preprocessing, frame: pd.DataFrame, label: str) -> NativeModel:
        require_both_classes(frame[label], "training")
        return self.fit(preprocessing, frame)

    def _evaluate(
        self,
        data: TrainingData,
        validation: ValidationOutcome,
        preprocessing: Preprocessing,
        model: NativeModel,
    ) -> TrainingResult:
        """Measure the model once on the holdout and draw the plots."""
        holdout, labels = data.holdout, data.holdout[data.label].to_numpy()
        matrix = preprocessing.transform(holdout)
        scores = model.scores(matrix)
        # Where one class is absent nothing can be measured: this refuses it, before any figure is made.
        metrics = {**ranking_and_calibration(labels, scores), **self.own_metrics(holdout, scores)}
        sampled = np.linspace(0, len(matrix) - 1, min(SHAP_ROWS, len(matrix))).astype(int)
        shap = ShapSample(preprocessing, matrix[sampled], model.contributions(matrix[sampled]))
        codes = ReasonCodes(preprocessing.names, self.reason_codes(preprocessing.names))
        thresholds = validation.thresholds
        groups = holdout[data.contract.service.join_keys[0]].to_numpy()
        measures = measure_holdout(
            ScoredRows(labels, scores, groups, self.action_costs(holdout), self.slices(holdout)),
            thresholds,
            metrics,
            importance_of(codes, preprocessing.names, shap.contributions),
            example_reasons(codes, shap.contributions, scores[sampled], thresholds),
        )
        plots = model_plots(labels, scores, thresholds, shap)
        if measures.slices:
            plots["slices"] = slice_plot(measures.overall, measures.slices)
        return TrainingResult(preprocessing, model, validation, scores, measures, plots)

    def _bundle(self, folder: Path, data: TrainingData, result: TrainingResult) -> ReleaseBundle:
        """Write the bundle and load it back as a service would; reference scores are of unseen rows."""
        contents = BundleContents(
            model_name=self.identity.model_name,
            model=result.model,
            contract=data.contract,
            preprocessing=result.preprocessing,
            thresholds=result.validation.thresholds,
            reference=reference_statistics(data.training, result.preprocessing, result.scores),
            golden=golden_rows(data.holdout, result.preprocessing, result.model),
            reason_codes=self.reason_codes(result.preprocessing.names),
            training=data.interval,
            label_policy_version=data.label_policy_version,
            git_commit=git_commit(Path(__file__).parents[1]),
            data_version=data.data_version,
        )
        return ReleaseBundle.load(folder, write_bundle(contents, folder))

    def _card(self, data: TrainingData, result: TrainingResult, bundle: ReleaseBundle) -> Card:
        labelled = data.labelled
        return Card(
            text=self.card(),
            manifest=bundle.manifest,
            bundle_sha256=bundle.sha256,
            service=data.contract.service,
            reason_codes=bundle.reason_codes,
            label=data.label,
            label_delay=(labelled["label_known_at"] - labelled["event_timestamp"]).min().to_pytimedelta(),
            measures=result.measures,
            folds=result.validation.fold_metrics,
            parameters=self.parameters,
            raw_data=dvc_version(self.data_dir, self.identity.report),
            plots=result.plots,
        )

    def _run(self, card: Card) -> TrainingRun:
        interval, manifest = card.manifest.training, card.manifest
        cuts = {f"threshold.{outcome.name}": outcome.threshold for outcome in card.measures.thresholds}
        return TrainingRun(
            experiment=self.identity.experiment,
            run_name=f"{self.identity.report}-{interval.holdout_end:%Y%m%d}-{manifest.data_version[:8]}",
            parameters={**self.parameters, **cuts},
            metrics=run_metrics(card),
            tags={
                "report": self.identity.report,
                "owner": "" if card.text is None else card.text.owner,
                "training_interval": f"{interval.start:%Y-%m-%d}/{interval.end:%Y-%m-%d}",
                "holdout_interval": f"{interval.holdout_start:%Y-%m-%d}/{interval.holdout_end:%Y-%m-%d}",
                "label_policy_version": str(manifest.label_policy_version),
                "dvc_version": card.raw_data,
            },
            figures=card.plots,
            documents=card_files(card),
            description=run_note(card),
            model_description=model_note(card),
            group="training",
        )


@dataclass(frozen=True)
class ValidationOutcome:
    """Thresholds chosen on unseen rows, and the metrics of each fold."""

    thresholds: dict[str, float]
    fold_metrics: list[dict[str, float]]


@dataclass(frozen=True)
class TrainingResult:
    """The fitted model and what was measured on the holdout, whose rows have the `scores`."""

    preprocessing: Preprocessing
    model: NativeModel
    validation: ValidationOutcome
    scores: np.ndarray
    measures: HoldoutMeasures
    plots: dict[str, bytes]
