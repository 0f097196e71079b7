"""The gate of a model project: registry, ledger and report, wired once for all."""

from __future__ import annotations

from common_ml_utils.base_model_trainer import ModelIdentity
from common_ml_utils.mlflow_utils import ModelRegistry
from common_ml_utils.promotion.gate import GateProject, PromotionGate, Verdict
from common_ml_utils.promotion.ledger import PromotionLedger
from common_ml_utils.settings import GateSettings, PlatformSettings


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
