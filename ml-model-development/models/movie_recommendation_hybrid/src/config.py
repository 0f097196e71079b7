"""Settings of the recommender; docs/recommendation.md has the table of environment names."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from common_ml_utils.settings import GateSettings, PlatformSettings

FEATURE_SERVICE = "movie_recommendation_v1"
LABEL_POLICY_VERSION = "known when given"
"""A rating matures at once: it is known from the moment it was given."""
K = 10
"""Length of the lists that are measured."""


@dataclass(frozen=True)
class RecommenderIdentity:
    """The names of the model in the registry, in MLflow's experiments and in reports."""

    model_name: str
    experiment: str
    report: str


IDENTITY = RecommenderIdentity(
    model_name="movie-recommendation-model",
    experiment="movie_recommendation_hybrid",
    report="recommendation",
)


class CollaborativeParameters(BaseModel):
    """EASE in factored form and ALS; chosen on validation, see docs/recommendation.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum_ratings: int = Field(default=3, ge=1)
    """A movie with fewer ratings has no collaborative part."""
    ease_regularization: float = Field(default=500.0, gt=0)
    ease_dropout: float = Field(default=0.3, ge=0, lt=1)
    """Adds dropout / (1 - dropout) x its ratings to a movie's regularization (Steck 2020, EDLAE)."""
    ease_rank: int = Field(default=256, ge=1)
    """How many factors are kept; all there are give EASE itself."""
    als_factors: int = Field(default=16, ge=1)
    als_regularization: float = Field(default=30.0, gt=0)
    als_confidence: float = Field(default=10.0, gt=1)
    als_iterations: int = Field(default=15, ge=1)
    seed: int = 0


class ContentParameters(BaseModel):
    """The learned map from what a viewer watched to what the viewer may like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    taste_ridge: float = Field(default=0.1, gt=0)
    content_ridge: float = Field(default=30.0, gt=0)


class BlendGrid(BaseModel):
    """The mixtures that are tried on validation; the best one goes into the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    als_shares: tuple[float, ...] = (0.0, 0.25, 0.5)
    content_shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    viewer_strengths: tuple[float, ...] = (0.0, 5.0)
    movie_strengths: tuple[float, ...] = (0.0, 3.0)
    prior_scales: tuple[float, ...] = (0.25, 0.5, 1.0)
    popularity_scales: tuple[float, ...] = (1.0, 3.0, 10.0)


class SplitShares(BaseModel):
    """Of each viewer's ratings in order of time: which share fits, which validates; the rest is held out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fit: float = Field(default=0.6, gt=0, lt=1)
    training: float = Field(default=0.8, gt=0, lt=1)
    cold_movies: float = Field(default=0.15, gt=0, lt=1)
    """Of the movies with ratings: those kept apart to measure movies without any."""
    bootstrap_resamples: int = Field(default=500, ge=100)


class RecommenderSettings(PlatformSettings):
    """All settings of the recommender's commands."""

    collaborative: CollaborativeParameters = CollaborativeParameters()
    content: ContentParameters = ContentParameters()
    blend: BlendGrid = BlendGrid()
    split: SplitShares = SplitShares()
    gate: GateSettings = GateSettings(
        metric="ndcg_at_10", floor=0.10, ceiling=0.4, margin=0.005, slice_margin=0.02
    )
