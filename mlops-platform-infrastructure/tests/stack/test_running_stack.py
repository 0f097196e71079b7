"""The real servers, in an instance of their own in a temporary folder: started, killed, stopped, started."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import psutil
import psycopg
import pytest
import redis

from local_stack import health, processes, settings
from local_stack.__main__ import existing
from local_stack.instance import Instance, local_dir_from_environment, open_instance
from local_stack.ports import seaweedfs_sockets

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = local_dir_from_environment() / "venvs"
SERVERS = {"postgres", "valkey", "s3", "broker", "mlflow", "schema-registry"}


class Stack:
    """A private instance, driven through the command line as a person would."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance

    def run(self, *words: str, code: int | None = 0) -> str:
        command = [sys.executable, "-m", "local_stack", "--instance", self.instance.name, *words]
        environment = {**os.environ, "LOCAL_DIR": str(self.instance.local_dir)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def env(self) -> dict[str, str]:
        return settings.read(self.instance.env_file)

    def states(self) -> dict[str, dict[str, Any]]:
        output = self.run("status", "--json", code=None)
        return {entry["name"]: entry for entry in json.loads(output)}

    def ports(self) -> set[int]:
        return set(json.loads((self.instance.state_dir / "ports.json").read_text()).values())

    def processes(self) -> list[psutil.Process]:
        pids = [entry["pid"] for entry in self.states().values() if entry["pid"]]
        return [member for pid in pids for member in processes.tree(psutil.Process(pid))]

    def database(self, prefix: str = "FEATURE_STORE_DB") -> psycopg.Connection:
        env = self.env
        return psycopg.connect(
            host=env[f"{prefix}_HOST"],
            port=env[f"{prefix}_PORT"],
            dbname=env[f"{prefix}_NAME"],
            user=env[f"{prefix}_USER"],
            password=env[f"{prefix}_PASSWORD"],
            connect_timeout=5,
        )

    def redis(self) -> redis.Redis:
        env = self.env
        return redis.Redis(
            env["REDIS_HOST"], int(env["REDIS_PORT"]), password=env["REDIS_PASSWORD"], socket_timeout=5
        )

    def s3(self) -> Any:
        env = self.env
        return boto3.client(
            "s3",
            endpoint_url=env["S3_ENDPOINT_URL"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            region_name=env["AWS_DEFAULT_REGION"],
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    local_dir = tmp_path_factory.mktemp("local")
    # The schema registry runs in the environment of its root.
    (local_dir / "venvs").symlink_to(ENVIRONMENTS)
    made = Stack(open_instance("it", local_dir))
    try:
        made.run("up")
        yield made
    finally:
        made.run("reset", "--yes")
        assert not made.instance.state_dir.exists()


def test_every_server_runs_and_the_services_wait_to_be_asked_for(stack: Stack) -> None:
    states = {name: entry["state"] for name, entry in stack.states().items()}
    assert {name for name, state in states.items() if state == "running"} == SERVERS
    asked_for = ("fraud-api", "churn-api", "recommendation-api", "decision-page")
    assert {states[name] for name in asked_for} == {"stopped"}


def test_nothing_listens_outside_the_loopback(stack: Stack) -> None:
    heard = [
        connection.laddr
        for process in stack.processes()
        for connection in process.net_connections("inet")
        if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
    ]
    assert {address.ip for address in heard} == {"127.0.0.1"}
    chosen = json.loads((stack.instance.state_dir / "ports.json").read_text())
    apis = {chosen[name] for name in ("fraud_api", "churn_api", "recommendation_api", "decision_page")}
    assert {address.port for address in heard} == set(chosen.values()) - apis


def test_secrets_and_state_are_closed_to_others(stack: Stack) -> None:
    state = stack.instance.state_dir
    open_to_others = [
        path
        for path in [state, *state.iterdir(), *(state / "run").iterdir(), *(state / "logs").iterdir()]
        if path.stat().st_mode & 0o077 and path.name != "reports"
    ]
    assert open_to_others == []
    command_lines = " ".join(word for process in stack.processes() for word in process.cmdline())
    secrets = json.loads((state / "secrets.json").read_text()).values()
    assert [secret for secret in secrets if secret in command_lines] == []
    assert [secret for secret in secrets if secret in stack.run("logs", "-n", "100000")] == []


def test_each_database_has_its_owner_and_is_closed_to_the_others(stack: Stack) -> None:
    with stack.database() as connection:
        connection.execute("create schema if not exists raw")
        assert connection.execute("select current_user").fetchone() == ("feature_store",)
        assert connection.execute("show jit").fetchone() == ("off",)
    env = stack.env
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(
            host="127.0.0.1",
            port=env["FEATURE_STORE_DB_PORT"],
            dbname="decisions",
            user="feature_store",
            password=env["FEATURE_STORE_DB_PASSWORD"],
        )


def test_nobody_gets_in_without_the_generated_secrets(stack: Stack) -> None:
    env = stack.env
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(
            host="127.0.0.1",
            port=env["DECISIONS_DB_PORT"],
            dbname="decisions",
            user="decisions",
            password="x",
        )
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(env["REDIS_HOST"], int(env["REDIS_PORT"])).ping()
    client = boto3.client(
        "s3",
        endpoint_url=env["S3_ENDPOINT_URL"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key="wrong",
        region_name="us-east-1",
    )
    with pytest.raises(botocore.exceptions.ClientError, match="SignatureDoesNotMatch"):
        client.list_buckets()
    stack.s3().put_object(Bucket="data", Key="private.txt", Body=b"closed")
    filer = json.loads((stack.instance.state_dir / "ports.json").read_text())["s3_filer"]
    assert health.http_status(f"http://127.0.0.1:{filer}/buckets/data/private.txt")[0] == 401


def test_an_object_of_many_parts_comes_back_whole(stack: Stack) -> None:
    body = os.urandom(20_000_000)
    stack.s3().upload_fileobj(io.BytesIO(body), "data", "big")
    assert stack.s3().get_object(Bucket="data", Key="big")["Body"].read() == body
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        stack.s3().put_object(Bucket="data", Key="big", Body=b"2", IfNoneMatch="*")


def produce(stack: Stack, topic: str, values: list[bytes]) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=stack.env["KAFKA_BOOTSTRAP_SERVERS"], acks="all")
    for future in [producer.send(topic, value) for value in values]:
        future.get(30)
    producer.close()


def consume(stack: Stack, topic: str, count: int) -> list[bytes]:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=stack.env["KAFKA_BOOTSTRAP_SERVERS"],
        group_id=None,
        auto_offset_reset="earliest",
        consumer_timeout_ms=15000,
    )
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    values = [record.value for _, record in zip(range(count), consumer, strict=False)]
    consumer.close()
    return values


def test_a_produced_record_is_consumed(stack: Stack) -> None:
    from kafka.admin import KafkaAdminClient, NewTopic

    admin = KafkaAdminClient(bootstrap_servers=stack.env["KAFKA_BOOTSTRAP_SERVERS"])
    admin.create_topics([NewTopic("kept", 1, 1)])
    admin.close()
    produce(stack, "kept", [b"one", b"two"])
    assert consume(stack, "kept", 2) == [b"one", b"two"]


REGISTER = """
import mlflow
from mlflow import MlflowClient
client = MlflowClient()
mlflow.set_experiment("kept")
with mlflow.start_run() as run:
    mlflow.log_metric("auc", 0.9)
    mlflow.log_text("hello", "bundle/note.txt")
client.create_registered_model("kept-model")
source = f"runs:/{run.info.run_id}/bundle"
version = client.create_model_version("kept-model", source, run_id=run.info.run_id)
client.set_registered_model_alias("kept-model", "champion", version.version)
"""
READ = """
import sys
from pathlib import Path
import mlflow
from mlflow import MlflowClient
version = MlflowClient().get_model_version_by_alias("kept-model", "champion")
folder = mlflow.artifacts.download_artifacts("models:/kept-model@champion", dst_path=sys.argv[1])
auc = mlflow.get_run(version.run_id).data.metrics["auc"]
print(version.version, auc, Path(folder, "note.txt").read_text())
"""


def mlflow_client(stack: Stack, *words: str) -> str:
    """A client as the components are one: it knows the tracking address and no S3 key."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_"))},
        "MLFLOW_TRACKING_URI": stack.env["MLFLOW_TRACKING_URI"],
    }
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_with_an_alias_is_registered_through_the_server(stack: Stack, tmp_path: Path) -> None:
    mlflow_client(stack, "-c", REGISTER)
    assert "1 0.9 hello" in mlflow_client(stack, "-c", READ, str(tmp_path))
    stored = stack.s3().list_objects_v2(Bucket="mlflow")
    assert any(entry["Key"].endswith("bundle/note.txt") for entry in stored["Contents"])


def test_mlflow_answers_a_browser_on_loopback_and_no_other_host_name(stack: Stack) -> None:
    address = stack.env["MLFLOW_TRACKING_URI"]
    query = "/api/2.0/mlflow/experiments/search?max_results=1"
    for url in (address, address.replace("127.0.0.1", "localhost")):
        assert health.http_status(url)[0] == 200
        assert health.http_status(url + query)[0] == 200
    with pytest.raises(urllib.request.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(address + query, headers={"Host": "evil.example"}))


def test_the_schema_registry_refuses_a_change_that_readers_would_not_survive(stack: Stack) -> None:
    def register(properties: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        schema = {"type": "object", "additionalProperties": False, "properties": properties}
        request = urllib.request.Request(
            f"{stack.env['SCHEMA_REGISTRY_URL']}/subjects/kept-value/versions",
            data=json.dumps({"schemaType": "JSON", "schema": json.dumps(schema)}).encode(),
        )
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    status, registered = register({"amount": {"type": "number"}})
    assert (status, list(registered)) == (200, ["id"])
    status, refused = register({"amount": {"type": "string"}})
    assert (status, refused["error_code"]) == (409, 409)
    assert "amount: type narrowed from number to string" in refused["message"]
    memory = {name: entry["memory_mb"] for name, entry in stack.states().items()}
    assert memory["schema-registry"] < 80


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    before = {name: entry["pid"] for name, entry in stack.states().items()}
    stack.run("up")
    assert {name: entry["pid"] for name, entry in stack.states().items()} == before


def test_two_ups_at_once_start_one_stack(stack: Stack) -> None:
    stack.run("stop", "valkey")
    command = [sys.executable, "-m", "local_stack", "--instance", "it", "up"]
    environment = {**os.environ, "LOCAL_DIR": str(stack.instance.local_dir)}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(existing(stack.instance).members("valkey")) == 1


def test_postgres_recovers_from_a_kill_under_load_and_mlflow_with_it(stack: Stack) -> None:
    with stack.database() as connection:
        connection.execute("create schema if not exists raw")
        connection.execute("create table raw.kept as select i from generate_series(1, 100000) i")
    busy = stack.database()
    busy.execute("create table raw.lost as select i from generate_series(1, 100000) i")  # not committed
    before = stack.states()["postgres"]["pid"]
    children = psutil.Process(before).children(recursive=True)
    stack.run("kill", "postgres")
    assert processes.wait_ended(children, 0) == []
    report = stack.run("status", code=1)
    assert "postgres is dead" in report
    assert "mlflow is unhealthy" in report
    with contextlib.suppress(psycopg.Error):
        busy.close()
    stack.run("up")
    with stack.database() as connection:
        assert connection.execute("select count(*) from raw.kept").fetchone() == (100000,)
        assert connection.execute("select to_regclass('raw.lost')").fetchone() == (None,)
    assert stack.states()["mlflow"]["state"] == "running"


def test_valkey_keeps_its_keys_through_a_kill(stack: Stack) -> None:
    stack.redis().mset({f"key{number}": number for number in range(1000)})
    time.sleep(1.1)  # the log is written to disk every second
    stack.run("kill", "valkey")
    with pytest.raises(redis.ConnectionError):
        stack.redis().ping()
    stack.run("start", "valkey")
    assert stack.redis().dbsize() == 1000


def test_a_broken_service_is_named_with_its_last_log_lines_and_the_rest_stays_up(stack: Stack) -> None:
    stack.run("stop", "postgres")
    settings_file = stack.instance.service_dir("postgres") / "data" / "postgresql.conf"
    original = settings_file.read_text()
    settings_file.write_text(original + "\nno_such_setting = 1\n")
    try:
        report = stack.run("up", code=1)
    finally:
        settings_file.write_text(original)
    assert "postgres: ended at start with code 1" in report
    assert "no_such_setting" in report
    states = {name: entry["state"] for name, entry in stack.states().items()}
    assert states["valkey"] == states["s3"] == "running"
    stack.run("up")
    assert stack.states()["postgres"]["state"] == "running"


def test_lost_secrets_are_reported_at_once_and_not_replaced_in_the_data(stack: Stack) -> None:
    secret_file = stack.instance.state_dir / "secrets.json"
    kept = secret_file.read_text()
    stack.run("down")
    secret_file.unlink()
    try:
        assert "postgres: its data was made with other secrets" in stack.run("up", code=1)
    finally:
        stack.run("down")
        secret_file.write_text(kept)
    stack.run("up")


def test_down_leaves_no_process_and_up_finds_all_data_and_ports_again(stack: Stack, tmp_path: Path) -> None:
    members, ports = stack.processes(), (stack.instance.state_dir / "ports.json").read_text()
    stack.s3().put_object(Bucket="data", Key="kept.txt", Body=b"kept")
    stack.run("down")
    assert processes.wait_ended(members, 0) == []
    supervisor = existing(stack.instance)
    assert [name for name in supervisor.services if supervisor.members(name)] == []
    assert [path for port in stack.ports() for path in seaweedfs_sockets(port)] == []
    stack.run("up")
    assert (stack.instance.state_dir / "ports.json").read_text() == ports
    with stack.database() as connection:
        assert connection.execute("select count(*) from raw.kept").fetchone() == (100000,)
    assert stack.redis().get("key7") == b"7"
    assert stack.s3().get_object(Bucket="data", Key="kept.txt")["Body"].read() == b"kept"
    assert consume(stack, "kept", 2) == [b"one", b"two"]
    assert "1 0.9 hello" in mlflow_client(stack, "-c", READ, str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to lower itself")
def test_root_without_user_namespaces_runs_postgres_as_nobody(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unshare").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    nobody = Stack(open_instance("it-nobody", stack.instance.local_dir))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        try:
            nobody.run("start", "postgres")
            process = psutil.Process(nobody.states()["postgres"]["pid"])
            assert process.uids().effective == 65534
            nobody.run("kill", "postgres")
            nobody.run("start", "postgres")
            with nobody.database() as connection:
                assert connection.execute("select 1").fetchone() == (1,)
        finally:
            nobody.run("reset", "--yes")


def test_removing_the_state_by_hand_leaves_down_a_way_to_stop_it(stack: Stack) -> None:
    careless = Stack(open_instance("it-careless", stack.instance.local_dir))
    careless.run("up")
    members = careless.processes()
    shutil.rmtree(careless.instance.state_dir)
    output = careless.run("down")
    assert all(name in output for name in SERVERS)
    assert processes.wait_ended(members, 0) == []


def test_another_instance_runs_beside_it_on_other_ports(stack: Stack) -> None:
    other = Stack(open_instance("it-two", stack.instance.local_dir))
    try:
        other.run("start", "broker")
        assert {name for name, entry in other.states().items() if entry["pid"]} == {"s3", "broker"}
        assert not stack.ports() & other.ports()
        assert other.env["REDIS_PASSWORD"] != stack.env["REDIS_PASSWORD"]
    finally:
        other.run("reset", "--yes")
    assert {name for name, entry in stack.states().items() if entry["state"] == "running"} == SERVERS
