"""The server's settings, from environment variables; unsafe ones are refused, not repaired."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.engine import URL

from mlflow_guard.errors import ConfigurationError

_HOST = re.compile(r"[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-fA-F:]+\](?::\d+)?")
_ORIGIN = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d+)?")


@dataclass(frozen=True)
class Limits:
    """How much of what a request may take; bytes and seconds."""

    upload_bytes: int = 256 << 20
    json_bytes: int = 4 << 20
    idle_seconds: float = 30.0
    request_seconds: float = 600.0
    transfers: int = 8


@dataclass(frozen=True)
class Settings:
    """What the server reads at its start."""

    database: str
    artifacts: str
    host: str
    port: int
    allowed_hosts: frozenset[str]
    allowed_origins: frozenset[str]
    limits: Limits


def database_uri(environment: Mapping[str, str]) -> str:
    """Return the address of the database, given whole or in parts; raises ConfigurationError."""
    if whole := environment.get("MLFLOW_BACKEND_STORE_URI", ""):
        return whole
    names = {part: f"MLFLOW_DB_{part}" for part in ("HOST", "PORT", "NAME", "USER", "PASSWORD")}
    if missing := [name for name in names.values() if not environment.get(name)]:
        raise ConfigurationError(f"set MLFLOW_BACKEND_STORE_URI, or {', '.join(missing)}")
    url = URL.create(
        "postgresql+psycopg2",
        username=environment[names["USER"]],
        password=environment[names["PASSWORD"]],
        host=environment[names["HOST"]],
        port=_number(environment, names["PORT"], 5432),
        database=environment[names["NAME"]],
    )
    return url.render_as_string(hide_password=False)


def read(environment: Mapping[str, str]) -> Settings:
    """Return the settings of an environment; raises ConfigurationError for what is missing or unsafe."""
    hosts = _listed(environment, "MLFLOW_SERVER_ALLOWED_HOSTS")
    if not hosts:
        raise ConfigurationError(
            "set MLFLOW_SERVER_ALLOWED_HOSTS: the Host headers that are ours, with port, e.g. server2:5000"
        )
    if wrong := sorted(host for host in hosts if not _HOST.fullmatch(host)):
        raise ConfigurationError(
            f"MLFLOW_SERVER_ALLOWED_HOSTS holds no patterns, only hosts: {', '.join(wrong)}"
        )
    origins = _listed(environment, "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS")
    if wrong := sorted(origin for origin in origins if not _ORIGIN.fullmatch(origin)):
        raise ConfigurationError(
            f"MLFLOW_SERVER_CORS_ALLOWED_ORIGINS holds no patterns, only origins: {', '.join(wrong)}"
        )
    artifacts = environment.get("MLFLOW_ARTIFACTS_DESTINATION", "")
    if not artifacts:
        raise ConfigurationError("set MLFLOW_ARTIFACTS_DESTINATION, e.g. s3://mlflow/artifacts")
    default = Limits()
    return Settings(
        database=database_uri(environment),
        artifacts=artifacts,
        host=environment.get("MLFLOW_HOST") or "127.0.0.1",
        port=_number(environment, "MLFLOW_PORT", 5000),
        allowed_hosts=hosts,
        allowed_origins=origins | {f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")},
        limits=Limits(
            upload_bytes=_number(environment, "MLFLOW_MAX_UPLOAD_BYTES", default.upload_bytes),
            json_bytes=_number(environment, "MLFLOW_MAX_JSON_BYTES", default.json_bytes),
            idle_seconds=_number(environment, "MLFLOW_IDLE_SECONDS", int(default.idle_seconds)),
            request_seconds=_number(environment, "MLFLOW_REQUEST_SECONDS", int(default.request_seconds)),
            transfers=_number(environment, "MLFLOW_TRANSFERS", default.transfers),
        ),
    )


def mlflow_environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that MLflow's own application reads, with everything closed that we don't use."""
    endpoint = environment.get("MLFLOW_S3_ENDPOINT_URL") or environment.get("S3_ENDPOINT_URL")
    return {
        "_MLFLOW_SERVER_FILE_STORE": settings.database,
        "_MLFLOW_SERVER_REGISTRY_STORE": settings.database,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": settings.artifacts,
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(sorted(settings.allowed_hosts)),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(sorted(settings.allowed_origins)),
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false",
        "MLFLOW_SERVER_X_FRAME_OPTIONS": "SAMEORIGIN",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
        "MLFLOW_ENABLE_WORKSPACES": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        **({"MLFLOW_S3_ENDPOINT_URL": endpoint} if endpoint else {}),
    }


def _listed(environment: Mapping[str, str], name: str) -> frozenset[str]:
    return frozenset(item.strip().lower() for item in environment.get(name, "").split(",") if item.strip())


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ConfigurationError(f"{name} is a whole number above 0")
    return int(text)
