"""The gate of a model project: registry, ledger, kept training sets and report, wired once for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from common_ml_utils.base_model_trainer import ModelIdentity
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import DataError
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import ModelRegistry, RegisteredBundle
from common_ml_utils.promotion_evaluation import Evaluation, classifier_evaluation
from common_ml_utils.promotion_gate import GateProject, Holdout, Measured, PromotionGate, Verdict
from common_ml_utils.promotion_guards import Finding
from common_ml_utils.promotion_ledger import PromotionLedger
from common_ml_utils.release_bundle import Manifest, ReleaseBundle
from common_ml_utils.settings import GateSettings, PlatformSettings
from common_ml_utils.slices import Slices
from common_ml_utils.training_sets import TrainingSetStore

Candidate = RegisteredBundle[ReleaseBundle]


@dataclass(frozen=True)
class TrainingSource:
    """Where a project's labelled rows come from and how they are split; the gate reads them again itself.

    `load(client, contract, manifest)` gives the rows a manifest's training had, checked, ordered by `key`;
    `split(rows, manifest)` its training and holdout part. `seen(client, kept, champion, holdout)` marks the
    holdout rows that the champion was trained on.
    """

    key: str
    label: str
    group: str
    load: Callable[[FeatureStoreClient, PublishedContract, Manifest], pd.DataFrame]
    split: Callable[[pd.DataFrame, Manifest], tuple[pd.DataFrame, pd.DataFrame]]
    seen: Callable[[FeatureStoreClient, TrainingSetStore, Candidate, pd.DataFrame], np.ndarray]
    slices_of: Callable[[pd.DataFrame], Slices]


@dataclass(frozen=True)
class ClassifierProject:
    """A `GateProject` of a binary classifier on a feature service."""

    source: TrainingSource
    client: FeatureStoreClient
    kept: TrainingSetStore
    settings: GateSettings

    @cached_property
    def _dataset_id(self) -> str:
        return self.client.dataset_id()

    def measure(self, challenger: Candidate, champion: Candidate | None) -> Measured:
        """Measure on the challenger's holdout; the pair only on rows the champion was not trained on."""
        holdout = self.holdout(challenger, challenger)
        whole = self._evaluation(challenger, holdout)
        if champion is None:
            return Measured(whole)
        seen = self.source.seen(self.client, self.kept, champion, holdout.frame)
        theirs = self.holdout(champion, challenger)
        if not np.array_equal(theirs.frame[self.source.key], holdout.frame[self.source.key]):
            raise DataError("champion and challenger were given different holdout rows")
        if not seen.any():
            return Measured(whole, (self._evaluation(champion, theirs), whole))
        fair, fair_theirs = (_rows(each, ~seen) for each in (holdout, theirs))
        positives = int(fair.labels.sum())
        left = f"{int(seen.sum())} of {len(seen)} rows of the holdout"
        if min(positives, len(fair.labels) - positives) < self.settings.slice_support:
            unfair = f"the champion was trained on a part of this holdout, {left}; too few others are left"
            return Measured(whole, unfair=unfair)
        pair = self._evaluation(champion, fair_theirs), self._evaluation(challenger, fair)
        return Measured(
            whole, pair, notes=(f"the champion was trained on {left}: left out of the comparison",)
        )

    def findings(self, challenger: Candidate, champion: Candidate | None) -> Sequence[Finding]:
        """Return what the guards of bundle and training data found."""
        return []

    def holdout(self, candidate: Candidate, challenger: Candidate) -> Holdout:
        """Return the challenger's holdout with the candidate's features: kept rows, else fetched again."""
        rows = self.labelled(candidate.bundle.contract, challenger.bundle.manifest)
        frame = self.source.split(rows, challenger.bundle.manifest)[1]
        labels, groups = (frame[name].to_numpy() for name in (self.source.label, self.source.group))
        return Holdout(frame, labels, groups, self.source.slices_of(frame))

    def labelled(self, contract: PublishedContract, manifest: Manifest) -> pd.DataFrame:
        """Return the labelled rows of a training with a contract's features."""
        kept = self.kept.load(manifest.data_version, self._dataset_id, contract.sha256)
        return self.source.load(self.client, contract, manifest) if kept is None else kept

    def _evaluation(self, candidate: Candidate, holdout: Holdout) -> Evaluation:
        scores = candidate.bundle.score_frame(holdout.frame)
        return classifier_evaluation(
            holdout.labels, scores, holdout.groups, holdout.slices, self.settings.metric
        )


def _rows(holdout: Holdout, mask: np.ndarray) -> Holdout:
    slices = {name: each[mask] for name, each in holdout.slices.items()}
    frame = holdout.frame[mask].reset_index(drop=True)
    return Holdout(frame, holdout.labels[mask], holdout.groups[mask], slices)


def run_classifier_gate(
    settings: PlatformSettings, gate: GateSettings, identity: ModelIdentity, source: TrainingSource
) -> Verdict:
    """Judge a classifier's challenger; see `run_project_gate`."""
    project = ClassifierProject(
        source,
        FeatureStoreClient(settings.feature_store_db),
        TrainingSetStore(settings.data_dir / "training_sets" / identity.report),
        gate,
    )
    return run_project_gate(settings, gate, identity, project)


def run_project_gate(
    settings: PlatformSettings, gate: GateSettings, identity: ModelIdentity, project: GateProject
) -> Verdict:
    """Judge the challenger against the champion; move the alias if the verdict is to promote.

    Raises RegistryError, FeatureStoreError or LedgerError when one of them does not answer.
    """
    registry = ModelRegistry(settings.mlflow_tracking_uri)
    registry.check_reachable()
    return PromotionGate(
        model_name=identity.model_name,
        registry=registry,
        ledger=PromotionLedger(settings.decisions_db),
        settings=gate,
        project=project,
        report=settings.reports_dir / identity.report / "gate.json",
    ).run()
