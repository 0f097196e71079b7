"""The stack's settings: one shell-sourceable file that reaches every component as environment variables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from local_stack.instance import REPO_DIR, Instance

SECRET_VARIABLES = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|API_KEY$|FERNET|SQL_ALCHEMY_CONN|JWT")
BUCKETS = ("mlflow", "data", "kafka")
REGION = "us-east-1"
LOOPBACK = "127.0.0.1,localhost"
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")


def build(instance: Instance, ports: Mapping[str, int], secrets: Mapping[str, str]) -> dict[str, str]:
    """Return every variable named in docs/architecture.md, and those that keep tools quiet and offline."""
    pipelines = REPO_DIR / "mlops-orchestration-pipelines"
    airflow_home = instance.state_dir / "airflow"
    airflow_db = f"airflow:{secrets['airflow_db']}@127.0.0.1:{ports['postgres']}/airflow"
    return {
        "LOCAL_DIR": str(instance.local_dir),
        "DATA_DIR": str(instance.state_dir / "data"),
        "REPORTS_DIR": str(instance.reports_dir),
        "SPOOL_DIR": str(instance.state_dir / "spool"),
        **_database("FEATURE_STORE_DB", "feature_store", ports["postgres"], secrets["feature_store_db"]),
        **_database("DECISIONS_DB", "decisions", ports["postgres"], secrets["decisions_db"]),
        **_database("MLFLOW_DB", "mlflow", ports["postgres"], secrets["mlflow_db"]),  # for its backup alone
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(ports["valkey"]),
        "REDIS_PASSWORD": secrets["redis"],
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{ports['broker']}",
        "SCHEMA_REGISTRY_URL": f"http://127.0.0.1:{ports['schema_registry']}",
        "S3_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": secrets["s3_access_key"],
        "AWS_SECRET_ACCESS_KEY": secrets["s3_secret_key"],
        "AWS_DEFAULT_REGION": REGION,
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['mlflow']}",
        "FRAUD_API_URL": f"http://127.0.0.1:{ports['fraud_api']}",
        "CHURN_API_URL": f"http://127.0.0.1:{ports['churn_api']}",
        "RECOMMENDATION_API_URL": f"http://127.0.0.1:{ports['recommendation_api']}",
        "DECISION_PAGE_URL": f"http://127.0.0.1:{ports['decision_page']}",
        "API_KEYS_FILE": str(instance.state_dir / "api_keys.json"),
        "DEMO_API_KEY": secrets["demo_api_key"],
        "AIRFLOW_HOME": str(airflow_home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(pipelines / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(pipelines / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__DEFAULT_TIMEZONE": "utc",
        "AIRFLOW__CORE__FERNET_KEY": secrets["airflow_fernet"],
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{airflow_db}",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": f"postgresql+asyncpg://{airflow_db}",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(airflow_home / "logs"),
        "AIRFLOW__API__SECRET_KEY": secrets["airflow_api"],
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets["airflow_jwt"],
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "NO_PROXY": LOOPBACK,
        "no_proxy": LOOPBACK,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "FEAST_USAGE": "False",
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }


def _database(prefix: str, name: str, port: int, password: str) -> dict[str, str]:
    values = {"HOST": "127.0.0.1", "PORT": str(port), "NAME": name, "USER": name, "PASSWORD": password}
    return {f"{prefix}_{key}": value for key, value in values.items()}


def render(variables: Mapping[str, str]) -> str:
    """Return the text of a settings file: `KEY='value'`, one a line, for `.` in a POSIX shell.

    Raises ValueError for a value that holds a line break: one line is one setting.
    """
    for key, value in variables.items():
        if "\n" in value or "\r" in value:
            raise ValueError(f"the value of {key} holds a line break")
    return "".join(f"{key}={_quote(value)}\n" for key, value in variables.items())


def _quote(value: str) -> str:
    return "'" + value.replace("'", "'\"'\"'") + "'"


def parse(text: str) -> dict[str, str]:
    """Return the variables of a settings file; raises ValueError for a line that is no assignment."""
    variables: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        words = shlex.split(match[2]) if match else []
        if match is None or len(words) != 1:
            raise ValueError(f"line {number} of the settings file is no KEY='value'")
        variables[match[1]] = words[0]
    return variables


def read(path: Path) -> dict[str, str]:
    """Return the variables of the settings file at `path`."""
    return parse(path.read_text(encoding="utf-8"))


def masked(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with every secret value replaced by stars."""
    return {key: "********" if SECRET_VARIABLES.search(key) else value for key, value in variables.items()}
