"""`python -m server_tools secrets`: every secret of the servers, generated once into a file of its own.

A file is named after the setting it becomes in a container, in lower case, and has mode 0600 in a folder of
mode 0700. A secret that exists is never changed; what is derived from others (a database URL, a key file with
hashes) follows them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from local_stack.private_files import write_private
from server_tools import places, server_settings

CONTAINER_UID = 10001
API_SCOPES = (
    "fraud:predict",
    "fraud:read",
    "churn:predict",
    "churn:read",
    "recommendation:predict",
    "recommendation:read",
    "model:read",
)


class SecretsError(Exception):
    """The secrets' folder can't be used as it is; the message says why."""


def _password() -> str:
    return secrets.token_urlsafe(24)  # letters, digits, '-' and '_': safe in URLs, shells and config files


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _access_key() -> str:
    return secrets.token_hex(10).upper()


# Name of the file -> how its value is made.
GENERATED: dict[str, Callable[[], str]] = {
    "postgres_password": _password,
    "feature_store_db_password": _password,
    "decisions_db_password": _password,
    "mlflow_db_password": _password,
    "airflow_db_password": _password,
    "monitoring_db_password": _password,
    "backup_db_password": _password,
    "backup_repository_password": _password,
    "mlflow_backup_db_password": _password,
    "mlflow_backup_password": _password,
    "redis_password": _password,
    "aws_access_key_id": _access_key,
    "aws_secret_access_key": _password,
    "s3_volume_signing_key": _password,
    "s3_filer_signing_key": _password,
    "mlflow_flask_server_secret_key": _password,
    "mlflow_admin_password": _password,
    "mlflow_trainer_password": _password,
    "mlflow_service_password": _password,
    "airflow__core__fernet_key": _fernet_key,
    "airflow__api__secret_key": _password,
    "airflow__api_auth__jwt_secret": _password,
    "airflow_admin_password": _password,
    "jenkins_admin_password": _password,
    "jenkins_deployer_password": _password,
    "grafana_admin_password": _password,
    "elastic_password": _password,
    "kibana_system_password": _password,
    "kibana_encryption_key": _password,
    "filebeat_password": _password,
    "demo_api_key": _password,
    "page_password": _password,
    "spark_auth_secret": _password,
}


def _airflow_database(known: Mapping[str, str], driver: str) -> str:
    return f"postgresql+{driver}://airflow:{known['airflow_db_password']}@server1:5432/airflow"


def _security(known: Mapping[str, str]) -> str:
    keys = {
        "jwt.signing": "s3_volume_signing_key",
        "jwt.signing.read": "s3_volume_signing_key",
        "jwt.filer_signing": "s3_filer_signing_key",
        "jwt.filer_signing.read": "s3_filer_signing_key",
    }
    return "".join(f'[{section}]\nkey = "{known[name]}"\n' for section, name in keys.items())


def _identities(known: Mapping[str, str]) -> str:
    identity = {
        "name": "platform",
        "credentials": [
            {"accessKey": known["aws_access_key_id"], "secretKey": known["aws_secret_access_key"]},
        ],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return json.dumps({"identities": [identity]}, indent=1) + "\n"


def _api_keys(known: Mapping[str, str]) -> str:
    digest = hashlib.sha256(known["demo_api_key"].encode()).hexdigest()
    return json.dumps([{"name": "demo", "sha256": digest, "scopes": list(API_SCOPES)}], indent=1) + "\n"


# Name of the file -> its text, computed from the values above.
DERIVED: dict[str, Callable[[Mapping[str, str]], str]] = {
    "airflow__database__sql_alchemy_conn": lambda known: _airflow_database(known, "psycopg2"),
    "airflow__database__sql_alchemy_conn_async": lambda known: _airflow_database(known, "asyncpg"),
    "airflow_passwords.json": lambda known: json.dumps({"admin": known["airflow_admin_password"]}) + "\n",
    "page_password_sha256": lambda known: hashlib.sha256(known["page_password"].encode()).hexdigest(),
    "redis_auth.conf": lambda known: f"requirepass {known['redis_password']}\n",
    "redis_exporter_passwords.json": lambda known: (
        json.dumps({"redis://server2:6379": known["redis_password"]}) + "\n"
    ),
    "s3_identities.json": _identities,
    "seaweedfs_security.toml": _security,
}

# Kept from the first run on: services and people change this file (a key is added, another revoked).
SEEDED: dict[str, Callable[[Mapping[str, str]], str]] = {
    "api_keys.json": _api_keys,
}

# Nobody here can make these: they are created empty, for an operator to write what others have given.
GIVEN: tuple[str, ...] = (
    "alert_webhook_url",
    "jenkins_agent_ssh_key",
    "jenkins_git_token",
    "jenkins_registry_token",
    "jenkins_notification_webhook",
)

NAMES = (*GENERATED, *DERIVED, *SEEDED, *GIVEN)


def owner() -> tuple[int, int]:
    """Return the user and group that own the secret files, and as which the containers run."""
    if os.geteuid() == 0:
        return CONTAINER_UID, CONTAINER_UID
    return os.geteuid(), os.getegid()


def create(folder: Path) -> list[str]:
    """Create what is missing below `folder` and return the names of the files that were written.

    Raises SecretsError where others than their owner can read the folder or a file in it.
    """
    uid, gid = owner()
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    _must_be_private(folder)
    written = []
    known: dict[str, str] = {}
    for name, make in GENERATED.items():
        path = folder / name
        if not path.exists():
            write_private(path, make())
            written.append(name)
        known[name] = path.read_text(encoding="utf-8").strip()
        if not known[name]:
            raise SecretsError(f"{path} is empty: delete it, and a new value is made")
    for name, derive in DERIVED.items():
        path = folder / name
        text = derive(known)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_private(path, text)
            written.append(name)
    for name, derive in SEEDED.items():
        if not (folder / name).exists():
            write_private(folder / name, derive(known))
            written.append(name)
    for name in GIVEN:
        if not (folder / name).exists():
            write_private(folder / name, "")
            written.append(name)
    for path in (folder, *folder.iterdir()):
        if (path.stat().st_uid, path.stat().st_gid) != (uid, gid):
            os.chown(path, uid, gid)
    return written


def _must_be_private(folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink() or mode & 0o077:
            raise SecretsError(
                f"others can read {path} (mode {mode:04o}): take their access away with chmod go= {path}, "
                "and think about new secrets where somebody may have read them"
            )


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="server_tools secrets", description=__doc__)
    parser.parse_args(arguments[1:])
    try:
        written = create(places.secrets_dir())
        settings = places.settings_file()
        server_settings.create(settings, *owner())
    except (SecretsError, server_settings.SettingsError, OSError) as error:
        print(f"server_tools secrets: {error}", file=sys.stderr)
        return 1
    print(f"{places.secrets_dir()}: {len(written)} written, {len(NAMES) - len(written)} kept")
    print(f"settings: {settings}")
    return 0
