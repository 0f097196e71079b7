"""Settings of the fraud detection service; environment variables only."""

from __future__ import annotations

from pathlib import Path

from common_service_libs.base_api_config import BaseApiConfig, Port

POLICIES = Path(__file__).resolve().parents[2] / "policies"


class FraudApiConfig(BaseApiConfig):
    """See BaseApiConfig; the values here are what makes the service the fraud service."""

    service_name: str = "fraud_detection_api"
    service_port: Port = 8001
    model_name: str = "fraud-detection-model"
    policy_file: Path = POLICIES / "fraud_detection.yaml"
