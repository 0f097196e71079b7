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
    """What a challenger must show before it is promoted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    floor: float = Field(ge=0, le=1)
    """The first model must reach this on the holdout, and so must every later one."""
    confidence: float = Field(default=0.9, gt=0.5, lt=1)
    """A challenger is better when P(better) in the paired bootstrap reaches this."""
    calibration_tolerance: float = Field(default=0.01, ge=0)
    """By how much the calibration error may exceed the champion's."""
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
