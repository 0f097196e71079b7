"""The gate of a model project: registry, ledger, kept training sets and report, wired once for all."""

from __future__ import annotations

from collections.abc import Callable

from common_ml_utils.base_model_trainer import ModelIdentity
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import ModelRegistry, RegisteredBundle
from common_ml_utils.promotion_gate import Holdout, PromotionGate
from common_ml_utils.promotion_ledger import PromotionLedger
from common_ml_utils.release_bundle import Manifest
from common_ml_utils.settings import GateSettings, PlatformSettings
from common_ml_utils.training_sets import TrainingSetStore

LoadHoldout = Callable[[FeatureStoreClient, TrainingSetStore, RegisteredBundle, RegisteredBundle], Holdout]


def run_project_gate(
    settings: PlatformSettings,
    gate: GateSettings,
    identity: ModelIdentity,
    load_holdout: LoadHoldout,
    saw_holdout: Callable[[Manifest, Manifest], bool],
) -> None:
    """Judge the challenger against the champion on its holdout; move the alias if it is better.

    `load_holdout(client, kept, candidate, challenger)` gives the challenger's holdout with the candidate's
    features. Raises RegistryError, FeatureStoreError or LedgerError when one of them does not answer.
    """
    client = FeatureStoreClient(settings.feature_store_db)
    registry = ModelRegistry(settings.mlflow_tracking_uri)
    registry.check_reachable()
    kept = TrainingSetStore(settings.data_dir / "training_sets" / identity.report)

    def holdout_for(candidate: RegisteredBundle, challenger: RegisteredBundle) -> Holdout:
        return load_holdout(client, kept, candidate, challenger)

    PromotionGate(
        model_name=identity.model_name,
        registry=registry,
        ledger=PromotionLedger(settings.decisions_db),
        settings=gate,
        holdout_for=holdout_for,
        saw_holdout=saw_holdout,
        report=settings.reports_dir / identity.report / "gate.json",
    ).run()
