"""What every model project reads from the environment; each adds its own fields in `src/config.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class DatabaseAddress(BaseModel):
    """Where a PostgreSQL database answers and who asks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: int
    name: str
    user: str
    password: SecretStr

    def connection_arguments(self) -> dict[str, Any]:
        """Return psycopg's keyword arguments, with a deadline for connecting."""
        return {
            "host": self.host,
            "port": self.port,
            "dbname": self.name,
            "user": self.user,
            "password": self.password.get_secret_value(),
            "connect_timeout": 10,
        }


class GateSettings(BaseModel):
    """What a challenger must show before it is promoted; docs/promotion.md explains the statistics.

    Beyond some limits lies a grey band, in which a person decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    floor: float = Field(ge=0, le=1)
    """Every model must reach this on the holdout."""
    ceiling: float = Field(default=1.0, ge=0, le=1)
    """Better than this is too good to be true: a person looks for a leak first."""
    margin: float = Field(default=0.02, ge=0)
    """By how much the metric may be below the champion's: the margin of non-inferiority."""
    confidence: float = Field(default=0.9, gt=0.5, lt=1)
    """Not worse when P(difference > -margin) reaches this; worse when it is below 1 minus this."""
    slice_margin: float = Field(default=0.05, ge=0)
    """The margin of each guarded slice."""
    slice_support: int = Field(default=30, ge=1)
    """Rows of the rarer class (viewers of a recommender) below which a slice is reported, but not judged."""
    slice_error: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance that any slice of an equally good challenger is called worse, shared among the judged slices."""
    calibration_tolerance: float = Field(default=0.01, ge=0)
    """By how much the calibration error may exceed the champion's."""
    calibration_limit: float = Field(default=0.1, ge=0)
    """The largest calibration error of any model."""
    latency_limit_us: float = Field(default=2000.0, gt=0)
    """The largest median time of one row, in microseconds, on the machine that runs the gate."""
    latency_ratio: float = Field(default=3.0, gt=1)
    """By what factor one row may take longer than with the champion, measured in turns."""
    staleness_days: float = Field(default=7.0, gt=0)
    """By how many days known labels may reach further than a training at that time would have used."""
    sample_rows: int = Field(default=300, ge=50)
    """Training rows that are fetched again from the feature store and compared value for value."""
    value_tolerance: float = Field(default=0.01, ge=0, lt=1)
    """Share of rows of a feature that may differ when fetched again before the challenger is refused."""
    label_tolerance: float = Field(default=0.001, ge=0, lt=1)
    """Share of training labels that may differ when read again before the challenger is refused."""
    leak_auc: float = Field(default=0.95, gt=0.5, le=1)
    """A feature that alone ranks the labels better than this asks; halfway from here to 1 it is refused."""
    shift_limit: float = Field(default=0.5, gt=0)
    """Population stability index of a training feature against the champion's; twice this is refused."""
    resamples: int = Field(default=1000, ge=100)
    seed: int = 0


class PlatformSettings(BaseSettings):
    """Addresses and folders of the platform, under the names docs/architecture.md gives them.

    A project's settings class extends it: one settings object a process, `TRAINING_` before the project's own
    names, `__` between the levels (`TRAINING_HYPERPARAMETERS__N_ESTIMATORS=300`).
    """

    model_config = SettingsConfigDict(
        env_prefix="TRAINING_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,  # one variable changes one value of a group
        populate_by_name=True,
        frozen=True,
        extra="forbid",
    )

    feature_store_db_host: str = Field(validation_alias="FEATURE_STORE_DB_HOST")
    feature_store_db_port: int = Field(validation_alias="FEATURE_STORE_DB_PORT")
    feature_store_db_name: str = Field(validation_alias="FEATURE_STORE_DB_NAME")
    feature_store_db_user: str = Field(validation_alias="FEATURE_STORE_DB_USER")
    feature_store_db_password: SecretStr = Field(validation_alias="FEATURE_STORE_DB_PASSWORD")
    decisions_db_host: str = Field(validation_alias="DECISIONS_DB_HOST")
    decisions_db_port: int = Field(validation_alias="DECISIONS_DB_PORT")
    decisions_db_name: str = Field(validation_alias="DECISIONS_DB_NAME")
    decisions_db_user: str = Field(validation_alias="DECISIONS_DB_USER")
    decisions_db_password: SecretStr = Field(validation_alias="DECISIONS_DB_PASSWORD")
    mlflow_tracking_uri: str = Field(
        validation_alias=AliasChoices("TRAINING_MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI")
    )
    data_dir: Path = Field(validation_alias="DATA_DIR")
    reports_dir: Path = Field(validation_alias="REPORTS_DIR")

    @property
    def feature_store_db(self) -> DatabaseAddress:
        """Database `feature_store`."""
        return DatabaseAddress(
            host=self.feature_store_db_host,
            port=self.feature_store_db_port,
            name=self.feature_store_db_name,
            user=self.feature_store_db_user,
            password=self.feature_store_db_password,
        )

    @property
    def decisions_db(self) -> DatabaseAddress:
        """Database `decisions`."""
        return DatabaseAddress(
            host=self.decisions_db_host,
            port=self.decisions_db_port,
            name=self.decisions_db_name,
            user=self.decisions_db_user,
            password=self.decisions_db_password,
        )
