"""Settings of the churn model; the table of environment names is in this root's README."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common_ml_utils.base_model_trainer import ModelIdentity
from common_ml_utils.hyperparameter_search import SearchSettings
from common_ml_utils.settings import GateSettings, PlatformSettings
from common_ml_utils.training_backends import BackendName, DistributionSettings

FEATURE_SERVICE = "customer_churn_v1"
LABEL_NAME = "churn"
# Not a setting: every model holds out the same subscribers, or the gate would use rows one was trained on.
HOLDOUT_SHARE = 0.2
IDENTITY = ModelIdentity(
    model_name="churn-prediction-model",
    experiment="customer_churn_lightgbm",
    report="churn",
    thresholds=("contact", "offer"),
)


class ChurnHyperparameters(BaseModel):
    """LightGBM's parameters: few leaves, many trees, and the categories as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_estimators: int = Field(default=300, gt=0)
    learning_rate: float = Field(default=0.03, gt=0, le=1)
    num_leaves: int = Field(default=4, gt=1)
    min_data_in_leaf: int = Field(default=40, gt=0)
    feature_fraction: float = Field(default=0.5, gt=0, le=1)
    bagging_fraction: float = Field(default=0.8, gt=0, le=1)
    bagging_freq: int = Field(default=1, ge=0)
    lambda_l2: float = Field(default=10.0, ge=0)
    cat_smooth: float = Field(default=20.0, ge=0)
    seed: int = 0
    n_jobs: int = Field(default=1, gt=0)


class ChurnFolds(BaseModel):
    """How the training rows are cut for validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folds: int = Field(default=5, ge=2)
    shuffle_seed: int = 0


class ChurnValues(BaseModel):
    """What the three actions cost and bring, in USD a subscriber; they decide the thresholds.

    A subscriber who leaves takes `subscriber_value` along. A contact costs a call and keeps some; an offer
    costs a discount, to those who would have stayed too, and keeps more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subscriber_value: float = Field(default=600.0, ge=0)
    contact_cost: float = Field(default=10.0, ge=0)
    contact_keeps: float = Field(default=0.15, ge=0, le=1)
    offer_cost: float = Field(default=90.0, ge=0)
    offer_keeps: float = Field(default=0.45, ge=0, le=1)

    @model_validator(mode="after")
    def _offer_is_the_stronger_action(self) -> ChurnValues:
        if self.offer_cost < self.contact_cost or self.offer_keeps < self.contact_keeps:
            raise ValueError("an offer must cost and keep at least what a contact does: thresholds rise")
        return self


class ChurnTrainingSettings(PlatformSettings):
    """All settings of the churn project's commands."""

    hyperparameters: ChurnHyperparameters = ChurnHyperparameters()
    validation: ChurnFolds = ChurnFolds()
    values: ChurnValues = ChurnValues()
    backend: BackendName = "local"
    distribution: DistributionSettings = DistributionSettings()
    search: SearchSettings = SearchSettings(metric="auc_roc")
    gate: GateSettings = GateSettings(
        metric="auc_roc", floor=0.80, ceiling=0.92, staleness_days=31, latency_limit_us=500
    )
