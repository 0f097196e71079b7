"""Secrets of an instance: generated once, kept in a file of mode 0600, never a default."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable
from pathlib import Path

from local_stack.private_files import write_private


def _password() -> str:
    return secrets.token_urlsafe(24)  # letters, digits, '-' and '_': safe in URLs, shells and config files


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _access_key() -> str:
    return secrets.token_hex(10).upper()


GENERATORS: dict[str, Callable[[], str]] = {
    "postgres_superuser": _password,
    "feature_store_db": _password,
    "decisions_db": _password,
    "mlflow_db": _password,
    "airflow_db": _password,
    "redis": _password,
    "s3_access_key": _access_key,
    "s3_secret_key": _password,
    "s3_volume_signing": _password,
    "s3_filer_signing": _password,
    "mlflow_flask": _password,
    "airflow_fernet": _fernet_key,
    "airflow_api": _password,
    "airflow_jwt": _password,
    "demo_api_key": _password,
}

DEMO_SCOPES = (
    "fraud:predict",
    "fraud:read",
    "churn:predict",
    "churn:read",
    "recommendation:predict",
    "recommendation:read",
    "model:read",
)


def load_or_create(path: Path) -> dict[str, str]:
    """Return the instance's secrets; those missing are generated and written back."""
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [name for name in GENERATORS if name not in known]
    if missing:
        known |= {name: GENERATORS[name]() for name in missing}
        write_private(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return known


def api_keys_document(demo_api_key: str) -> str:
    """Return the services' key file: names, SHA-256 hashes and scopes, no key."""
    digest = hashlib.sha256(demo_api_key.encode()).hexdigest()
    return json.dumps([{"name": "demo", "sha256": digest, "scopes": list(DEMO_SCOPES)}], indent=1) + "\n"
