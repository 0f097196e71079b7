"""The settings of the backup containers, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server_tools.backup.errors import BackupError

PARTS = ("postgres", "redis", "objects", "jenkins", "spool", "secrets")
FOLDER_PARTS = ("jenkins", "spool", "secrets")


@dataclass(frozen=True)
class Settings:
    """One container's settings; `parts` says what this server backs up."""

    data: Path
    repository: str
    repository_password: str
    parts: tuple[str, ...]
    interval_seconds: float
    base_interval_seconds: float
    keep_hourly: int
    keep_daily: int
    keep_weekly: int
    read_data: str
    postgres_host: str
    postgres_port: int
    postgres_password: str
    superuser_password: str
    replication_slot: str
    synchronous_names: str
    redis_host: str
    redis_port: int
    redis_password: str
    redis_rotate_seconds: float
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str
    s3_region: str
    skipped_buckets: tuple[str, ...]
    sources: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings; raises BackupError for a value that can't be one."""
        parts = tuple(environ.get("BACKUP_PARTS", "").replace(",", " ").split())
        if unknown := set(parts) - set(PARTS):
            raise BackupError(f"BACKUP_PARTS names {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
        data = Path(environ.get("BACKUP_DATA", "/backup"))
        return cls(
            data=data,
            repository=environ.get("BACKUP_REPOSITORY") or str(data / "repository"),
            repository_password=environ.get("BACKUP_REPOSITORY_PASSWORD", ""),
            parts=parts,
            interval_seconds=_number(environ, "BACKUP_INTERVAL_SECONDS", 3600),
            base_interval_seconds=_number(environ, "BACKUP_BASE_INTERVAL_SECONDS", 86400),
            keep_hourly=int(_number(environ, "BACKUP_KEEP_HOURLY", 24)),
            keep_daily=int(_number(environ, "BACKUP_KEEP_DAILY", 7)),
            keep_weekly=int(_number(environ, "BACKUP_KEEP_WEEKLY", 4)),
            read_data=environ.get("BACKUP_READ_DATA") or "100%",
            postgres_host=environ.get("BACKUP_POSTGRES_HOST", "server1"),
            postgres_port=int(_number(environ, "BACKUP_POSTGRES_PORT", 5432)),
            postgres_password=environ.get("BACKUP_DB_PASSWORD", ""),
            superuser_password=environ.get("POSTGRES_PASSWORD", ""),
            replication_slot=environ.get("BACKUP_SLOT") or "wal_archive",
            synchronous_names=environ.get("BACKUP_SYNCHRONOUS_NAMES", "wal_archive"),
            redis_host=environ.get("BACKUP_REDIS_HOST", "server2"),
            redis_port=int(_number(environ, "BACKUP_REDIS_PORT", 6379)),
            redis_password=environ.get("REDIS_PASSWORD", ""),
            redis_rotate_seconds=_number(environ, "BACKUP_REDIS_ROTATE_SECONDS", 86400),
            s3_endpoint=environ.get("S3_ENDPOINT_URL", ""),
            s3_access_key=environ.get("AWS_ACCESS_KEY_ID", ""),
            s3_secret_key=environ.get("AWS_SECRET_ACCESS_KEY", ""),
            s3_region=environ.get("AWS_DEFAULT_REGION", "us-east-1"),
            skipped_buckets=tuple(environ.get("BACKUP_SKIP_BUCKETS", "backup").split()),
            sources=Path(environ.get("BACKUP_SOURCES", "/sources")),
        )

    @property
    def wal(self) -> Path:
        """Where the WAL receiver writes: one folder for each incarnation of the database."""
        return self.data / "wal"

    @property
    def redis(self) -> Path:
        """Where the follower of Redis writes: one folder a generation."""
        return self.data / "redis"

    @property
    def staging(self) -> Path:
        """Scratch space of a backup or restore."""
        return self.data / "staging"

    @property
    def metrics(self) -> Path:
        """The folder of the textfile metrics."""
        return self.data / "metrics"


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        raise BackupError(f"{name} is {text!r}, which is no number") from None
    if value <= 0:
        raise BackupError(f"{name} is {text}; it must be greater than 0")
    return value
