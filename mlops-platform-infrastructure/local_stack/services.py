"""The table of services: what is started, how it is asked for its health, how it is stopped."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local_stack import health, postgres, wheels
from local_stack.instance import REPO_DIR, Instance
from local_stack.ports import stale_sockets
from local_stack.private_files import write_private
from local_stack.settings import BUCKETS, REGION


def _nothing() -> None:
    return None


# Unlike /health, this answers only when the database does.
MLFLOW_QUERY = "/api/2.0/mlflow/experiments/search?max_results=1"

API_FOLDERS = {
    "fraud": "fraud_detection_api",
    "churn": "customer_churn_api",
    "recommendation": "movie_recommendation_api",
}


@dataclass(frozen=True)
class Service:
    """One server process of the stack."""

    name: str
    title: str
    port: int
    ports: tuple[str, ...]
    command: Callable[[], list[str]]
    check: Callable[[], None]
    cwd: Path
    needs: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = _nothing
    after_ready: Callable[[], None] = _nothing
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    start_seconds: float = 60.0
    address: str = ""
    ready_url: str = ""
    optional: bool = False
    available: bool = True
    program: str = ""
    program_cwd: Path | None = None
    fingerprint: str = ""
    leftovers: Callable[[], list[Path]] = list


def table(
    instance: Instance, ports: Mapping[str, int], secrets: Mapping[str, str], settings: Mapping[str, str]
) -> dict[str, Service]:
    """Return the services of an instance in the order in which they are listed, keyed by name."""
    services = [
        _postgres(instance, ports, secrets),
        _valkey(instance, ports, secrets),
        _s3(instance, ports, secrets),
        _broker(instance, ports, secrets),
        _mlflow(instance, ports, secrets),
        _schema_registry(instance, ports, settings),
        *(_api(instance, ports, settings, name) for name in API_FOLDERS),
        _page(instance, ports, settings),
    ]
    return {service.name: service for service in services}


def _postgres(instance: Instance, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Service:
    port = ports["postgres"]
    folder = instance.service_dir("postgres")
    data_dir = folder / "data"
    password = secrets["postgres_superuser"]
    passwords = {name: secrets[f"{name}_db"] for name in postgres.DATABASES}
    return Service(
        name="postgres",
        title="PostgreSQL",
        port=port,
        ports=("postgres",),
        command=functools.partial(postgres.command, data_dir, port),
        prepare=functools.partial(postgres.prepare, data_dir, password),
        check=functools.partial(health.postgres, port, postgres.SUPERUSER, password, "postgres"),
        after_ready=functools.partial(postgres.create_databases, port, password, passwords),
        cwd=folder,
        program="postgres",
        program_cwd=data_dir,
        stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
        stop_seconds=30,
        start_seconds=120,  # crash recovery replays the log
        address=f"127.0.0.1:{port}",
    )


def _valkey(instance: Instance, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Service:
    folder = instance.service_dir("valkey")
    config = folder / "valkey.conf"
    port, password = ports["valkey"], secrets["redis"]
    text = "\n".join(
        [
            f"port {port}",
            "bind 127.0.0.1",
            "protected-mode yes",
            f"requirepass {password}",
            f'dir "{folder}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            # An entity's features are one hash of dozens of fields. As a table, and not a list, each field is
            # found at once: a row is written in half the time, for 2.7 times the memory (1.5 KB an entity).
            "hash-max-listpack-entries 8",
            # Rewriting the log while it grows fast slows every write.
            "auto-aof-rewrite-min-size 256mb",
            "maxmemory 1gb",
            "maxmemory-policy noeviction",
            "",
        ]
    )
    return Service(
        name="valkey",
        title="Valkey (Redis protocol)",
        port=port,
        ports=("valkey",),
        command=lambda: [str(wheels.valkey()), str(config)],
        prepare=functools.partial(write_private, config, text),
        check=functools.partial(health.valkey, port, password),
        cwd=folder,
        program="valkey-server",
        program_cwd=folder,
        fingerprint=text,
        address=f"127.0.0.1:{port}",
    )


def _s3(instance: Instance, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Service:
    folder = instance.service_dir("s3")
    own_ports = tuple(name for name in ports if name == "s3" or name.startswith("s3_"))
    access_key, secret_key, port = secrets["s3_access_key"], secrets["s3_secret_key"], ports["s3"]
    identity = {
        "name": "stack",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }

    # Without these keys the filer and volume ports would serve any local account without asking.
    security = "".join(
        f'[{section}]\nkey = "{key}"\n'
        for section, key in {
            "jwt.signing": secrets["s3_volume_signing"],
            "jwt.signing.read": secrets["s3_volume_signing"],
            "jwt.filer_signing": secrets["s3_filer_signing"],
            "jwt.filer_signing.read": secrets["s3_filer_signing"],
        }.items()
    )

    def prepare() -> None:
        write_private(folder / "s3.json", json.dumps({"identities": [identity]}, indent=1))
        write_private(folder / "security.toml", security)
        write_private(folder / "master.toml", "[master.volume_growth]\ncopy_1 = 1\n")
        (folder / "data").mkdir(mode=0o700, exist_ok=True)

    def command() -> list[str]:
        return [
            str(wheels.seaweedfs()), "-logtostderr=true", "server",
            f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer=true", "-s3=true",
            "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=0",
            "-volume.preStopSeconds=1", "-master.electionTimeout=500ms",
            f"-master.port={ports['s3_master']}", f"-master.port.grpc={ports['s3_master_grpc']}",
            f"-volume.port={ports['s3_volume']}", f"-volume.port.grpc={ports['s3_volume_grpc']}",
            f"-filer.port={ports['s3_filer']}", f"-filer.port.grpc={ports['s3_filer_grpc']}",
            f"-s3.port={port}", f"-s3.port.grpc={ports['s3_grpc']}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.config={folder / 's3.json'}", "-s3.localSocket=s3.sock",
            "-filer.localSocket=filer.sock",  # relative: the path of a socket has at most 107 characters
        ]  # fmt: skip

    return Service(
        name="s3",
        title="SeaweedFS (S3)",
        port=port,
        ports=own_ports,
        command=command,
        prepare=prepare,
        check=functools.partial(health.s3, port, access_key, secret_key, REGION),
        after_ready=functools.partial(health.s3_writable, port, access_key, secret_key, REGION, BUCKETS),
        fingerprint=security,
        leftovers=lambda: stale_sockets(ports[name] for name in own_ports),
        cwd=folder,
        env={"GOMEMLIMIT": "400MiB"},
        stop_seconds=4,  # its last part waits 15 s for its own connections; the data is on disk by then
        address=f"http://127.0.0.1:{port}",
    )


def _broker(instance: Instance, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Service:
    port = ports["broker"]
    url = f"tcp://127.0.0.1:{port}"

    def command() -> list[str]:
        return [
            str(wheels.broker()), "broker", f"--listener-url={url}", f"--advertised-listener-url={url}",
            "--storage-engine=s3://kafka/",
        ]  # fmt: skip

    return Service(
        name="broker",
        title="Tansu (Kafka protocol)",
        port=port,
        ports=("broker",),
        command=command,
        check=functools.partial(health.broker, port),
        cwd=instance.service_dir("broker"),
        needs=("s3",),  # topics, records and group offsets are objects: they outlive the broker
        env={
            "AWS_ENDPOINT": f"http://127.0.0.1:{ports['s3']}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": secrets["s3_access_key"],
            "AWS_SECRET_ACCESS_KEY": secrets["s3_secret_key"],
            "AWS_DEFAULT_REGION": REGION,
        },
        address=f"127.0.0.1:{port}",
    )


def _mlflow(instance: Instance, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Service:
    port = ports["mlflow"]
    backend = f"postgresql+psycopg2://mlflow:{secrets['mlflow_db']}@127.0.0.1:{ports['postgres']}/mlflow"

    return Service(
        name="mlflow",
        title="MLflow",
        port=port,
        ports=("mlflow",),
        command=lambda: [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-m",
            "local_stack.mlflow_server",
        ],
        check=functools.partial(health.http_ok, f"http://127.0.0.1:{port}{MLFLOW_QUERY}"),
        cwd=instance.service_dir("mlflow"),
        needs=("postgres",),  # the object store is first needed by the first artifact
        env={
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "MLFLOW_PORT": str(port),
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKETS[0]}/artifacts",
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}",
            "MLFLOW_BACKEND_STORE_URI": backend,
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": secrets["s3_access_key"],
            "AWS_SECRET_ACCESS_KEY": secrets["s3_secret_key"],
            "AWS_DEFAULT_REGION": REGION,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets["mlflow_flask"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        },
        start_seconds=180,
        address=f"http://127.0.0.1:{port}",
    )


def _schema_registry(instance: Instance, ports: Mapping[str, int], settings: Mapping[str, str]) -> Service:
    port = ports["schema_registry"]
    python = instance.local_dir / "venvs" / "feature-store-management" / "bin" / "python"
    database = {key: value for key, value in settings.items() if key.startswith("FEATURE_STORE_DB_")}
    return Service(
        name="schema-registry",
        title="Schema registry",
        port=port,
        ports=("schema_registry",),
        command=lambda: [str(python), "-m", "schema_registry.server"],
        check=functools.partial(health.http_ok, f"http://127.0.0.1:{port}/subjects"),
        cwd=REPO_DIR / "feature-store-management",
        needs=("postgres",),
        env={**database, "SCHEMA_REGISTRY_HOST": "127.0.0.1", "SCHEMA_REGISTRY_PORT": str(port)},
        address=f"http://127.0.0.1:{port}",
        # The stack of a machine on which the feature store is not set up does without it.
        optional=not python.exists(),
    )


def _api(instance: Instance, ports: Mapping[str, int], settings: Mapping[str, str], name: str) -> Service:
    root = REPO_DIR / "ml-model-services"
    folder = API_FOLDERS[name]
    port = ports[f"{name}_api"]
    url = f"http://127.0.0.1:{port}"
    return Service(
        name=f"{name}-api",
        title=f"{name.capitalize()} API",
        port=port,
        ports=(f"{name}_api",),
        command=lambda: [
            str(instance.local_dir / "venvs" / "ml-model-services" / "bin" / "python"),
            "-m",
            "app.main",
        ],
        check=functools.partial(health.http_ok, f"{url}/livez"),
        cwd=root / "services" / folder,
        needs=("postgres", "valkey", "mlflow"),
        env={**settings, "PYTHONPATH": str(root), "SERVICE_HOST": "127.0.0.1", "SERVICE_PORT": str(port)},
        address=url,
        ready_url=f"{url}/readyz",
        optional=True,
    )


def _page(instance: Instance, ports: Mapping[str, int], settings: Mapping[str, str]) -> Service:
    root = REPO_DIR / "ml-model-services"
    folder = root / "services" / "decision_page"
    environment = instance.local_dir / "venvs" / "ml-model-services"
    port = ports["decision_page"]
    url = f"http://127.0.0.1:{port}"
    return Service(
        name="decision-page",
        title="Decision page",
        port=port,
        ports=("decision_page",),
        command=lambda: [str(environment / "bin" / "python"), "-m", "app.main"],
        check=functools.partial(health.http_ok, f"{url}/livez"),
        cwd=folder,
        env={**settings, "PYTHONPATH": str(root), "PAGE_HOST": "127.0.0.1", "PAGE_PORT": str(port)},
        address=url,
        optional=True,
        # An environment without the page's own packages serves the APIs all the same.
        available=(folder / "app" / "main.py").exists()
        and any(environment.glob("lib/python*/site-packages/gradio")),
    )
