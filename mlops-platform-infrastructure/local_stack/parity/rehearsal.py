"""The parts of a parity check on one instance: schemas, keys, topics and services of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import redis
import yaml
from psycopg import sql

from local_stack import health, settings
from local_stack.demo import summary
from local_stack.instance import REPO_DIR, Instance
from local_stack.parity.replay import Conversation, metric_sum, read_page
from local_stack.transactions import TOPIC, Transaction

FEATURE_STORE = "feature-store-management"
CONFIGURATION = f"{FEATURE_STORE}/feast_repository/feature_store.yaml"
SERVICES = "ml-model-services"
MONITORING = "ml-reporting-and-monitoring-logic"
PREFIX = "parity_"
SCHEMAS = ("raw", "staging", "intermediate", "features", "labels", "feast", "quality", "stream")
PROJECT = "parity_check"
MODEL = "fraud-detection-model"
FEATURE_SERVICE = "fraud_detection_v1"
# The longest window, the longest label window and the label delay, and some days for entities to be seen in.
DAYS_BEFORE = 75
READY_SECONDS = 60.0
STOP_SECONDS = 20.0


class ParityError(Exception):
    """A part of the check failed; the message says which."""


def wrong_definition(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stream's definition with one field defined differently: a sum of amounts that counts.

    >>> fields = [{"name": "spent", "aggregate": "sum", "of": "amount"}]
    >>> wrong_definition({"views": [{"fields": fields}]})["views"][0]["fields"]
    [{'name': 'spent', 'aggregate': 'count'}]
    """
    wrong: dict[str, Any] = json.loads(json.dumps(definition))
    field = next(f for view in wrong["views"] for f in view["fields"] if f["aggregate"] == "sum")
    field["aggregate"] = "count"
    del field["of"]
    return wrong


def rehearsal_configuration(configuration: Mapping[str, Any], prefix: str, project: str) -> dict[str, Any]:
    """Return Feast's configuration with another project and another schema for its registry."""
    changed: dict[str, Any] = json.loads(json.dumps(configuration)) | {"project": project}
    arguments = changed["registry"]["sqlalchemy_config_kwargs"]["connect_args"]
    arguments["options"] = f"-c search_path={prefix}feast"
    changed["offline_store"]["db_schema"] = f"{prefix}feast"
    return changed


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Rehearsal:
    """One day served beside the real thing, on a running instance that the demo has filled."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        stack_env = settings.read(instance.env_file)
        self.landing = Path(stack_env["DATA_DIR"]) / "landing" / "transactions"
        self.reports = Path(stack_env["REPORTS_DIR"])
        self.folder = Path(stack_env["DATA_DIR"]) / "parity"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.env = stack_env | {
            "DATA_DIR": str(self.folder),
            "SPOOL_DIR": str(self.folder / "spool"),
            "FEATURE_STORE_SCHEMA_PREFIX": PREFIX,
            "FEATURE_STORE_RAW_SCHEMA": f"{PREFIX}raw",
            "FEAST_PROJECT": PROJECT,
            "FEAST_FS_YAML_FILE_PATH": str(self.folder / "feature_store.yaml"),
        }
        configuration = yaml.safe_load((REPO_DIR / CONFIGURATION).read_text())
        changed = rehearsal_configuration(configuration, PREFIX, PROJECT)
        (self.folder / "feature_store.yaml").write_text(yaml.safe_dump(changed))
        manifest = json.loads((self.landing / "dataset.json").read_text())
        self.day = max(date.fromisoformat(file["tx_date"]) for file in manifest["files"])
        self.first_day = date.fromisoformat(min(file["tx_date"] for file in manifest["files"]))

    # --- what stands before the day begins

    def forget(self) -> None:
        """Drop what an earlier check left: schemas and online values."""
        with summary.connect(self.env, "FEATURE_STORE_DB") as connection:
            for schema in SCHEMAS:
                connection.execute(
                    sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(PREFIX + schema))
                )
        self.forget_online()

    def forget_online(self) -> None:
        """Delete the online values of the check's own project."""
        with self._redis() as client:
            keys = client.scan_iter(match=f"*{PROJECT}", count=10_000)
            for batch in iter(lambda: [key for _, key in zip(range(1000), keys, strict=False)], []):
                client.unlink(*batch)

    def build_offline(self) -> None:
        """Load the days up to the replayed one, build the feature tables, register the definitions."""
        start = max(self.first_day, self.day - timedelta(days=DAYS_BEFORE))
        days = [start + timedelta(days=n) for n in range((self.day - start).days + 1)]
        loader = "data_transformation_pipelines.python_scripts_feast.load_transactions"
        dates = [word for day in days for word in ("--date", str(day))]
        self._python(FEATURE_STORE, "-m", loader, "--source", str(self.landing), *dates)
        self._script("run_dbt_for_feast.sh")
        self._script("run_feast_apply.sh")

    def materialize(self) -> None:
        """Bring the online store to the midnight at which the replayed day begins."""
        self._script("run_feast_materialize_incremental.sh", f"{self.day}T00:00:00+00:00")

    # --- the day itself

    def replay(self, name: str, transactions: Sequence[Transaction], definition: Mapping[str, Any]) -> str:
        """Serve the transactions under `definition`; returns the service name of their decision records."""
        service = f"fraud_detection_api_parity_{name}"
        prefix = f"parity-{name}-{time.time_ns()}."
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "definition.yaml"
            path.write_text(yaml.safe_dump(definition))
            with self._processor(path, prefix) as applied, self._api(service) as url:
                conversation = Conversation(
                    url,
                    self.env["DEMO_API_KEY"],
                    self.env["KAFKA_BOOTSTRAP_SERVERS"],
                    prefix + TOPIC,
                    applied,
                )
                conversation.hold(transactions, f"replay of {self.day} ({name})")
        return service

    def measure(self, service: str, since: datetime, report: Path) -> dict[str, Any]:
        """Recompute what `service` served since then, compare, and return the report."""
        job = ["-m", "advanced_monitoring_scripts.measure_feature_parity"]
        of = ["--service", service, "--model", MODEL, "--from", since.isoformat()]
        requests, vectors = self.folder / f"{service}-requests.parquet", self.folder / f"{service}.parquet"
        self._python(MONITORING, *job, "export", *of, "--out", str(requests))
        build = ["-m", "training_sets.build", "--service", FEATURE_SERVICE, "--entities", str(requests)]
        self._python(FEATURE_STORE, *build, "--out", str(vectors))
        report.unlink(missing_ok=True)
        compare = [*job, "compare", *of, "--vectors", str(vectors), "--out", str(report)]
        finished = self._run(MONITORING, [self._interpreter(MONITORING), *compare])
        if not report.is_file():
            raise ParityError(f"the comparison of {service} failed with exit code {finished.returncode}")
        result: dict[str, Any] = json.loads(report.read_text())
        return result

    # --- processes

    @contextlib.contextmanager
    def _processor(self, definition: Path, topic_prefix: str) -> Iterator[Any]:
        """Run the stream processor; yields a function that tells how many events every view has applied."""
        port = free_port()
        words = ["-m", "data_transformation_pipelines.stream_jobs_feast.process_transaction_stream"]
        words += ["--definition", str(definition)]
        env = {
            "STREAM_TOPIC_PREFIX": topic_prefix,
            "STREAM_CONSUMER_GROUP": f"{topic_prefix}totals",
            "STREAM_METRICS_PORT": str(port),
        }
        with self._process(FEATURE_STORE, words, env, "processor") as process:
            metrics = f"http://127.0.0.1:{port}/metrics"
            self._wait_for(process, metrics, "stream processor")
            yield functools.partial(self._applied, metrics)

    @staticmethod
    def _applied(metrics: str) -> float:
        page = read_page(metrics)
        return min(
            metric_sum(
                "\n".join(line for line in page.splitlines() if f'view="{view}"' in line),
                "stream_events_total",
            )
            for view in ("customer_today", "terminal_today")
        )

    @contextlib.contextmanager
    def _api(self, service: str) -> Iterator[str]:
        """Run a fraud API of the check's own; yields its address."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        env = {
            "PYTHONPATH": str(REPO_DIR / SERVICES),
            "SERVICE_HOST": "127.0.0.1",
            "SERVICE_PORT": str(port),
            "SERVICE_NAME": service,
        }
        folder = f"{SERVICES}/services/fraud_detection_api"
        with self._process(SERVICES, ["-m", "app.main"], env, "api", folder) as process:
            self._wait_for(process, f"{url}/readyz", "fraud API")
            yield url

    @contextlib.contextmanager
    def _process(
        self, root: str, words: Sequence[str], env: Mapping[str, str], name: str, folder: str | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        log = self.instance.logs_dir / f"parity-{name}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [self._interpreter(root), *words],
                cwd=REPO_DIR / (folder or root),
                env={**os.environ, **self.env, **env},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
            if process.poll() is not None:
                raise ParityError(f"the {name} ended by itself, exit code {process.returncode}: {log}")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @staticmethod
    def _wait_for(process: subprocess.Popen[bytes], url: str, name: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while process.poll() is None:
            try:
                return health.wait_http(url, 1.0, f"the {name} is not ready")
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
        raise ParityError(f"the {name} ended at its start, exit code {process.returncode}")

    def _script(self, name: str, *words: str) -> None:
        self._checked(FEATURE_STORE, [f"scripts/{name}", *words])

    def _python(self, root: str, *words: str) -> None:
        self._checked(root, [self._interpreter(root), *words])

    def _checked(self, root: str, command: Sequence[str]) -> None:
        finished = self._run(root, command)
        if finished.returncode != 0:
            shown = " ".join(command[:4])
            raise ParityError(f"{root}: {shown} failed with exit code {finished.returncode}")

    def _run(self, root: str, command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, cwd=REPO_DIR / root, env={**os.environ, **self.env}, check=False)

    def _interpreter(self, root: str) -> str:
        return str(self.instance.local_dir / "venvs" / root / "bin" / "python")

    def _redis(self) -> redis.Redis:
        return redis.Redis(
            self.env["REDIS_HOST"], int(self.env["REDIS_PORT"]), password=self.env["REDIS_PASSWORD"]
        )
