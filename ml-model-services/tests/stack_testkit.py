"""What the integration tests share: the stack and its servers, bundles in its registry, a service process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import redis
from service_testkit import KEY, REPOSITORY, Hash, write_keys

ROOT = REPOSITORY / "ml-model-services"
INFRASTRUCTURE = "mlops-platform-infrastructure"


def setting(name: str) -> str:
    """Return a setting of the running stack; a test without one fails and says what to do."""
    value = os.environ.get(name)
    if value is None:
        raise AssertionError(
            f"{name} is not set: integration tests run with the settings of a running stack, "
            "`python -m local_stack exec -- make -C ../ml-model-services test-integration`"
        )
    return value


def python_of(root: str) -> Path:
    return Path(setting("LOCAL_DIR")) / "venvs" / root / "bin" / "python"


def stack(action: str, service: str) -> None:
    """Kill or start one server of the running stack."""
    folder = Path(setting("SPOOL_DIR")).parent.name  # stack, or stack-<instance>
    instance = ["--instance", folder.removeprefix("stack-")] if folder != "stack" else []
    subprocess.run(
        [python_of(INFRASTRUCTURE), "-m", "local_stack", *instance, action, service],
        cwd=REPOSITORY / INFRASTRUCTURE, check=True, capture_output=True, timeout=120,
    )  # fmt: skip


@contextmanager
def killed(service: str) -> Iterator[None]:
    """Kill a server of the stack, and start it again whatever happens."""
    stack("kill", service)
    try:
        yield
    finally:
        stack("start", service)


def conninfo() -> str:
    return psycopg.conninfo.make_conninfo(
        host=setting("DECISIONS_DB_HOST"),
        port=setting("DECISIONS_DB_PORT"),
        dbname=setting("DECISIONS_DB_NAME"),
        user=setting("DECISIONS_DB_USER"),
        password=setting("DECISIONS_DB_PASSWORD"),
    )


def redis_client() -> redis.Redis:
    return redis.Redis(setting("REDIS_HOST"), int(setting("REDIS_PORT")), password=setting("REDIS_PASSWORD"))


def fill_online_store(data: Mapping[bytes, Hash]) -> None:
    client = redis_client()
    for key, fields in data.items():
        client.hset(key, mapping=fields)


def empty_online_store(project: str) -> None:
    client = redis_client()
    for key in client.scan_iter(b"*" + project.encode()):
        client.delete(key)


REGISTER = """
import sys
import mlflow
from mlflow.exceptions import MlflowException
name, *bundles = sys.argv[1:]
client = mlflow.MlflowClient()
experiment = mlflow.set_experiment("service-tests")
try:
    client.create_registered_model(name)
except MlflowException:
    pass
for folder, sha256 in zip(bundles[::2], bundles[1::2], strict=True):
    with mlflow.start_run() as run:
        mlflow.log_artifacts(folder, "model/artifacts/bundle")
    version = client.create_model_version(
        name, f"{run.info.artifact_uri}/model", run.info.run_id, tags={"bundle_sha256": sha256}
    )
client.set_registered_model_alias(name, "champion", version.version)
print(version.version)
"""


def register(name: str, bundle: Path, sha256: str) -> int:
    """Register a bundle in the stack's MLflow, give it the alias `champion`, and return its version."""
    return register_all(name, {bundle: sha256})


def register_all(name: str, bundles: Mapping[Path, str]) -> int:
    """Register bundles one after the other; the last one is the champion, and its version is returned."""
    given = [part for bundle, sha256 in bundles.items() for part in (str(bundle), sha256)]
    done = subprocess.run(
        [sys.executable, "-c", REGISTER, name, *given],
        env=os.environ | {"MLFLOW_TRACKING_URI": setting("MLFLOW_TRACKING_URI")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def unregister(name: str) -> None:
    url = setting("MLFLOW_TRACKING_URI") + "/api/2.0/mlflow/registered-models/delete"
    httpx.request("DELETE", url, json={"name": name}, timeout=10)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class ServiceProcess:
    """A service as the stack runs it: `python -m app.main` with the settings of the environment."""

    def __init__(self, service: str, folder: Path, **settings: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self._service = ROOT / "services" / service
        setting("REDIS_HOST")
        self._environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "SERVICE_PORT": str(self.port),
            "SPOOL_DIR": str(folder / "spool"),
            "API_KEYS_FILE": str(write_keys(folder / "keys.json")),
            "MODEL_POLL_SECONDS": "0.5",
            **{name.upper(): str(value) for name, value in settings.items()},
        }
        self.http = httpx.Client(base_url=self.url, headers={"X-API-Key": KEY}, timeout=10)
        self.start()

    def start(self) -> None:
        self._log = (self.folder / "service.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "app.main"], cwd=self._service, env=self._environment, stdout=self._log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, path: str = "/readyz", status: int = 200, seconds: float = 60) -> httpx.Response:
        deadline = time.monotonic() + seconds
        answer: httpx.Response | str = "no answer"
        while time.monotonic() < deadline:
            try:
                answer = self.http.get(path)
                if answer.status_code == status:
                    return answer
            except httpx.TransportError as error:
                answer = str(error)
            assert self._process.poll() is None, self.log()
            time.sleep(0.1)
        raise AssertionError(f"{path} is not {status} within {seconds} s: {answer}\n{self.log()}")

    def log(self) -> str:
        return (self.folder / "service.log").read_text()[-4000:]

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(20)

    def close(self) -> None:
        self.http.close()
        if self._process.poll() is None:
            self.stop()
        self._log.close()


def recorded(request_ids: list[str]) -> dict[str, tuple[str, float | None]]:
    """Return decision and score of those ids that are in the database."""
    with psycopg.connect(conninfo()) as connection:
        rows = connection.execute(
            "select request_id, decision, score from decisions.decision_records where request_id = any(%s)",
            (request_ids,),
        ).fetchall()
    return {row[0]: (row[1], row[2]) for row in rows}


def forget(prefix: str) -> None:
    with psycopg.connect(conninfo()) as connection:
        for table in ("decision_records", "decision_ids"):
            connection.execute(
                f"delete from decisions.{table} where starts_with(request_id, %s)",
                (prefix,),
            )


def forget_model(name: str) -> None:
    """Delete the decisions of one model."""
    with psycopg.connect(conninfo()) as connection:
        connection.execute(
            "with gone as (delete from decisions.decision_records where model_name = %s"
            " returning service, request_id)"
            " delete from decisions.decision_ids using gone"
            " where decision_ids.service = gone.service and decision_ids.request_id = gone.request_id",
            (name,),
        )


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


class FeastPeer:
    """The Feast SDK in the feature store's environment, on the stack's online store."""

    def __init__(self, contract: Mapping[str, Any], project: str) -> None:
        address = f"{setting('REDIS_HOST')}:{setting('REDIS_PORT')},password={setting('REDIS_PASSWORD')}"
        self._process = subprocess.Popen(
            [python_of("feature-store-management"), ROOT / "tests" / "feast_peer.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._send({"contract": contract, "project": project, "connection_string": address})

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        self._send(request)
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the Feast SDK has ended; what it said is above"
        return json.loads(answer)

    def write(self, rows: list[dict[str, Any]]) -> list[dict[str, str]]:
        """Write rows through the SDK; return raw key and hash of each in hex."""
        answer: list[dict[str, str]] = self._ask({"write": rows})
        return answer

    def read(self, entities: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Return what `get_online_features` says of many entities, as columns."""
        answer: dict[str, list[Any]] = self._ask({"read": entities})
        return answer

    def seconds(self, cases: list[dict[str, list[Any]]]) -> list[float]:
        """Return how long `get_online_features` took for each of `cases`."""
        answer: list[float] = self._ask({"time": cases})
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait(10)
            self._process.stdout.close()
