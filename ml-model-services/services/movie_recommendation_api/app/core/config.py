"""Settings of the recommendation service; environment variables only."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from common_service_libs.base_api_config import Port
from common_service_libs.recommender_service import RecommenderApiConfig

SERVICE = Path(__file__).resolve().parents[2]


class RecommendationApiConfig(RecommenderApiConfig):
    """See BaseApiConfig; the values here are what makes the service the recommendation service."""

    service_name: str = "movie_recommendation_api"
    service_port: Port = 8003
    model_name: str = "movie-recommendation-model"
    policy_file: Path = SERVICE / "policies" / "movie_recommendation.yaml"
    history_contract_file: Path = SERVICE / "contracts" / "viewer_history_v1.yaml"
    # A history of 2,500 movies and a choice of as many are a body of 40 kB.
    max_body_bytes: int = Field(default=65_536, ge=256)
