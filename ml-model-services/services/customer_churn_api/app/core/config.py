"""Settings of the churn service; environment variables only."""

from __future__ import annotations

from pathlib import Path

from common_service_libs.base_api_config import BaseApiConfig, Port

POLICIES = Path(__file__).resolve().parents[2] / "policies"


class ChurnApiConfig(BaseApiConfig):
    """See BaseApiConfig; the values here are what makes the service the churn service."""

    service_name: str = "customer_churn_api"
    service_port: Port = 8002
    model_name: str = "churn-prediction-model"
    policy_file: Path = POLICIES / "customer_churn.yaml"
