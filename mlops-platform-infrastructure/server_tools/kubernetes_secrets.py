"""`python -m server_tools kubernetes-secrets`: the Secrets a cluster needs, from the files of `make secrets`.

Prints manifests to standard output, to be piped into `kubectl apply -f -`; nothing goes to a disk and no
value stands on a command line. `--namespace` prints those of one namespace.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from server_tools import places

_AIRFLOW = (
    "airflow__database__sql_alchemy_conn",
    "airflow__database__sql_alchemy_conn_async",
    "airflow__core__fernet_key",
    "airflow__api__secret_key",
    "airflow__api_auth__jwt_secret",
)
_MLFLOW = (
    "mlflow_db_password",
    "aws_access_key_id",
    "aws_secret_access_key",
    "mlflow_flask_server_secret_key",
)
_USERS = ("mlflow_admin_password", "mlflow_trainer_password", "mlflow_service_password")


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _settings(*names: str) -> dict[str, str]:
    return {name.upper(): name for name in names}


# Secret -> key in it -> file it comes from.
Secrets = Mapping[str, Mapping[str, str]]

# By namespace. What pods read as files keeps its name; what they read as variables has the variable's.
SECRETS: dict[str, Secrets] = {
    "mlops-airflow": {
        "airflow-secrets": _same(*_AIRFLOW),
        "airflow-users": _same("airflow_passwords.json"),
    },
    "mlops-tasks": {
        "platform-passwords": _settings(
            "feature_store_db_password",
            "decisions_db_password",
            "redis_password",
            "aws_access_key_id",
            "aws_secret_access_key",
        )
        | {"MLFLOW_TRACKING_PASSWORD": "mlflow_trainer_password"},
        "mlflow-backup": {"MLFLOW_DB_PASSWORD": "mlflow_backup_db_password"}
        | _settings("mlflow_backup_password"),
    },
    "mlops-mlflow": {"mlflow-secrets": _same(*_MLFLOW), "mlflow-users": _same(*_USERS)},
    "mlops-services": {
        "platform-passwords": _settings("decisions_db_password", "redis_password")
        | {"MLFLOW_TRACKING_PASSWORD": "mlflow_service_password"},
        "decision-service-api-keys": _same("api_keys.json"),
        "decision-page": {"PAGE_API_KEY": "demo_api_key"} | _settings("page_password_sha256"),
    },
    "mlops-monitoring": {
        "alertmanager-receiver": _same("alert_webhook_url"),
        "grafana": _same("grafana_admin_password"),
        "redis-exporter": _same("redis_exporter_passwords.json"),
        "postgres-exporter": _same("monitoring_db_password"),
    },
}


class MissingSecretError(Exception):
    """A file that a Secret comes from is not there."""


def manifests(folder: Path, namespaces: Mapping[str, Secrets]) -> list[dict[str, object]]:
    """Return the Secrets of `namespaces` with the values of the files in `folder`.

    Raises MissingSecretError with every file that is missing.
    """
    files = {file for secrets in namespaces.values() for keys in secrets.values() for file in keys.values()}
    if missing := sorted(file for file in files if not (folder / file).is_file()):
        raise MissingSecretError(f"{folder} has no {', '.join(missing)}: run `make secrets`")
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"app.kubernetes.io/part-of": "mlops-platform"},
            },
            "stringData": {key: _value(folder / file) for key, file in keys.items()},
        }
        for namespace, secrets in namespaces.items()
        for name, keys in secrets.items()
    ]


def _value(path: Path) -> str:
    """Return a file's text; the line end of a one-line value is not part of it."""
    text = path.read_text(encoding="utf-8")
    return text.rstrip("\n") if text.count("\n") <= 1 else text


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="server_tools kubernetes-secrets", description=__doc__)
    parser.add_argument("--namespace", choices=sorted(SECRETS))
    chosen = parser.parse_args(arguments[1:]).namespace
    namespaces = {chosen: SECRETS[chosen]} if chosen else SECRETS
    try:
        documents = manifests(places.secrets_dir(), namespaces)
    except (MissingSecretError, OSError) as error:
        print(f"server_tools kubernetes-secrets: {error}", file=sys.stderr)
        return 1
    yaml.safe_dump_all(documents, sys.stdout, sort_keys=False)
    return 0
