"""What the jobs read from the environment, under the names of docs/architecture.md."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class DriftThresholds(BaseModel):
    """When a difference becomes a warning or an alert; `DRIFT_THRESHOLDS__PSI_WARN=0.2` changes one.

    A difference counts only if chance does not explain it: see `chance` and `confidence`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    psi_warn: float = Field(default=0.10, gt=0)
    psi_alert: float = Field(default=0.25, gt=0)
    rate_warn: float = Field(default=0.01, gt=0)
    """Difference of the share of nulls (or of unknown categories)."""
    rate_alert: float = Field(default=0.05, gt=0)
    chance: float = Field(default=0.001, gt=0, lt=1)
    """A PSI (or rate) this unlikely between two samples of one distribution is not chance."""
    minimum_rows: int = Field(default=100, ge=1)
    auc_roc_warn: float = Field(default=0.03, gt=0)
    """Loss of AUC ROC against the holdout."""
    auc_roc_alert: float = Field(default=0.06, gt=0)
    average_precision_warn: float = Field(default=0.20, gt=0)
    """Loss of average precision as a share of the holdout's."""
    average_precision_alert: float = Field(default=0.40, gt=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """A loss counts if the holdout's value lies above this bootstrap interval."""
    minimum_positives: int = Field(default=30, ge=2)


class DatabaseAddress(BaseModel):
    """Where a PostgreSQL database answers and who asks."""

    model_config = ConfigDict(frozen=True)

    host: str
    port: int
    name: str
    user: str
    password: SecretStr

    def connection_arguments(self) -> dict[str, str | int]:
        """Return psycopg's keyword arguments, with deadlines for connecting and for a query."""
        return {
            "host": self.host,
            "port": self.port,
            "dbname": self.name,
            "user": self.user,
            "password": self.password.get_secret_value(),
            "connect_timeout": 10,
            "options": "-c statement_timeout=120000 -c timezone=UTC -c default_transaction_read_only=on",
        }


class DecisionSettings(BaseSettings):
    """What every job reads that judges decisions: where they are, and where reports go."""

    model_config = SettingsConfigDict(frozen=True)

    decisions_db_host: str = Field(validation_alias="DECISIONS_DB_HOST")
    decisions_db_port: int = Field(validation_alias="DECISIONS_DB_PORT")
    decisions_db_name: str = Field(validation_alias="DECISIONS_DB_NAME")
    decisions_db_user: str = Field(validation_alias="DECISIONS_DB_USER")
    decisions_db_password: SecretStr = Field(validation_alias="DECISIONS_DB_PASSWORD")
    reports_dir: Path = Field(validation_alias="REPORTS_DIR")

    @property
    def decisions_db(self) -> DatabaseAddress:
        """Database `decisions`, read for scores and decision records."""
        return self._database("decisions_db")

    def _database(self, prefix: str) -> DatabaseAddress:
        names = ("host", "port", "name", "user", "password")
        return DatabaseAddress(**{name: getattr(self, f"{prefix}_{name}") for name in names})


class DriftSettings(DecisionSettings):
    """All settings of the drift job."""

    model_config = SettingsConfigDict(env_prefix="DRIFT_", env_nested_delimiter="__", frozen=True)

    thresholds: DriftThresholds = DriftThresholds()
    feature_store_db_host: str = Field(validation_alias="FEATURE_STORE_DB_HOST")
    feature_store_db_port: int = Field(validation_alias="FEATURE_STORE_DB_PORT")
    feature_store_db_name: str = Field(validation_alias="FEATURE_STORE_DB_NAME")
    feature_store_db_user: str = Field(validation_alias="FEATURE_STORE_DB_USER")
    feature_store_db_password: SecretStr = Field(validation_alias="FEATURE_STORE_DB_PASSWORD")
    mlflow_tracking_uri: str = Field(validation_alias="MLFLOW_TRACKING_URI")

    @property
    def feature_store_db(self) -> DatabaseAddress:
        """Database `feature_store`, read for the labels."""
        return self._database("feature_store_db")
