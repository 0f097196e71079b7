"""Settings that every decision service shares: environment variables only, secrets never printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from psycopg.conninfo import make_conninfo
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=600)]


class DecisionSettings(BaseSettings):
    """What both doors need, the services and the batch door: decision database, registry, local folder."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), hide_input_in_errors=True
    )

    decisions_db_host: str = "127.0.0.1"
    decisions_db_port: Port = 5432
    decisions_db_name: str = "decisions"
    decisions_db_user: str = "decisions"
    decisions_db_password: SecretStr
    mlflow_tracking_uri: str
    spool_dir: Path
    lists_file: Path | None = Field(default=None, description="block and allow lists: YAML, JSON or CSV")
    registry_deadline_seconds: Seconds = Field(default=5.0, description="one question to the registry")
    download_deadline_seconds: Seconds = Field(default=120.0, description="fetching one bundle")
    decisions_retention_days: int = Field(default=0, ge=0, description="older decisions are dropped; 0: none")

    def decisions_conninfo(self) -> str:
        """Return the connection string of the decision database; it holds the password: never log it."""
        return make_conninfo(
            host=self.decisions_db_host,
            port=self.decisions_db_port,
            dbname=self.decisions_db_name,
            user=self.decisions_db_user,
            password=self.decisions_db_password.get_secret_value(),
            connect_timeout=3,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=2,
            application_name="decision-service",
        )


class BaseApiConfig(DecisionSettings):
    """The settings of one service process; a service adds its model and policy."""

    service_name: str
    service_host: str = "127.0.0.1"
    service_port: Port
    service_workers: int = Field(default=1, ge=1, le=64, description="processes that share the port")
    api_keys_file: Path
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    redis_host: str = "127.0.0.1"
    redis_port: Port = 6379
    redis_password: SecretStr | None = None
    feast_project: str = "mlops_platform"

    model_name: str
    model_alias: str = "champion"
    policy_file: Path
    policy_poll_seconds: Seconds = Field(default=5.0, description="how often policy and lists are looked at")
    model_poll_seconds: Seconds = 5.0
    bundle_max_bytes: int = Field(default=512 << 20, ge=1 << 10, description="a larger bundle is refused")
    bundle_trial_seconds: float = Field(
        default=20.0, ge=0, le=600, description="a new bundle's trial in a process of its own; 0: none"
    )
    canary_alias: str = Field(default="canary", description="empty: no canary")
    canary_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the entities, where the version has no tag of its own"
    )
    shadow_alias: str = Field(default="shadow", description="empty: no shadow")
    rollout_window_seconds: float = Field(default=1800.0, ge=60, le=86_400)
    rollout_check_seconds: Seconds = Field(default=5.0, description="how often the canary is judged")
    rollout_minimum_requests: int = Field(default=200, ge=10, description="of each variant, before a verdict")

    online_store_deadline_seconds: Seconds = Field(default=0.05, description="one read of features")
    online_store_connect_seconds: Seconds = 0.5
    hot_snapshot_entities: int = Field(
        default=20_000, ge=0, le=1_000_000, description="remembered for when the online store is silent"
    )
    decision_store_deadline_seconds: Seconds = Field(default=0.25, description="one lookup of a decision")
    flush_deadline_seconds: Seconds = Field(default=10.0, description="writing one batch of decisions")
    shutdown_seconds: Seconds = Field(default=5.0, description="draining requests and spool at the end")

    drain_seconds: float = Field(
        default=0.5, ge=0, le=600, description="answering on after SIGTERM, while /readyz says 503"
    )
    max_connections: int = Field(default=1000, ge=1, description="more are turned away as they come")
    max_concurrent_requests: int = Field(default=64, ge=1, description="being decided at a time")
    max_queued_requests: int = Field(default=256, ge=0, description="waiting; more are answered 503 at once")
    request_deadline_seconds: Seconds = Field(
        default=1.0, description="what could not be answered within it is answered 503 at once"
    )

    max_body_bytes: int = Field(default=16_384, ge=256)
    body_deadline_seconds: Seconds = 5.0
    batch_max_cases: int = Field(default=500, ge=1, le=10_000, description="in one request")
    batch_max_body_bytes: int = Field(default=1 << 20, ge=256)
    batch_deadline_seconds: Seconds = Field(default=1.0, description="one read of the features of a batch")
    max_nesting: int = Field(default=8, ge=1, le=64, description="levels of objects and arrays in a body")
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwks_file: Path | None = Field(default=None, description="public keys for bearer tokens; none: keys only")
    rate_limit_per_second: float = Field(
        default=50_000, ge=0, le=1e6, description="requests of a client; 0: unlimited"
    )
    rate_limit_burst: int = Field(default=100_000, ge=1, le=10_000_000)
    hsts_seconds: int = Field(default=0, ge=0, description="for services that are reached by HTTPS only")
    log_hash_key_file: Path | None = Field(
        default=None,
        description="hides entity ids in logs; SPOOL_DIR/log_hash.key, made once, if none is named",
    )
    otel_exporter_otlp_endpoint: str | None = Field(default=None, description="none: no traces")
    kafka_bootstrap_servers: str | None = Field(default=None, description="none: no topic of decisions")
    decisions_topic: str = Field(default="decisions.v1", min_length=1)
    spool_max_bytes: int = Field(default=256 << 20, ge=1 << 20)
    spool_sync: Literal["interval", "always"] = Field(
        default="always",
        description="always: each reply waits for the disk; interval: the disk follows within 20 ms",
    )

    @field_validator("jwks_file")
    @classmethod
    def _tokens_are_for_this_service(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        """A token of any issuer, or for any audience, would be good here too: both have to be named."""
        if value is not None and not (info.data.get("jwt_issuer") and info.data.get("jwt_audience")):
            raise ValueError("needs JWT_ISSUER and JWT_AUDIENCE beside it")
        return value
