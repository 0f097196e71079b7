"""Search for hyperparameters with Optuna: a study in PostgreSQL that survives its workers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SearchSettings(BaseModel):
    """How long and how a project searches (`TRAINING_SEARCH__*`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Literal["average_precision", "auc_roc"]
    """What is maximised: its mean over the validation folds."""
    trials: int = Field(default=40, ge=1)
    """Finished trials that the study is to hold, those of all workers and earlier starts together."""
    timeout_seconds: float | None = Field(default=None, gt=0)
    folds: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0)
    pruner: Literal["median", "hyperband", "none"] = "median"
    heartbeat_seconds: int = Field(default=10, ge=1)
    """A worker that is silent for three of these is dead: its trial is marked failed and tried again."""
    logged_trials: int = Field(default=100, ge=0)
    """At most so many trials, the best ones, become MLflow runs."""
