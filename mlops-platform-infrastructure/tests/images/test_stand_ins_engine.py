"""The stand-ins do what the stacks ask of the real images (`make test-images`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_containers import docker, host, run, running, succeeds, volume, wait_for

from local_engine.stand_ins import build

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TOPICS = "/opt/kafka/bin/kafka-topics.sh"
PRODUCE = """
from kafka import KafkaProducer
producer = KafkaProducer(bootstrap_servers="localhost:9092")
for number in range(500):
    producer.send("t.v1", str(number).encode())
producer.flush()
"""
CONSUME = """
from kafka import KafkaConsumer
consumer = KafkaConsumer("t.v1", bootstrap_servers="localhost:9092", auto_offset_reset="earliest",
                         consumer_timeout_ms=8000)
values = []
for message in consumer:
    values.append(int(message.value))
    if len(values) == 500:
        break
print(sorted(values) == list(range(500)))
"""


def pinned(setting: str) -> str:
    name = build.pins(build.VERSIONS.read_text())[setting]
    build.ensure(host(), [setting])
    return name


def test_postgres_makes_its_cluster_once_from_secret_and_scripts(tmp_path: Path):
    (tmp_path / "10.sql").write_text("create table t (x int); insert into t values (7);")
    script = tmp_path / "20.sh"
    script.write_text(
        'set -e\npsql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" -c "create role app login"\n'
    )
    password = tmp_path / "password"
    password.write_text("from a file")
    for path in (tmp_path, *tmp_path.iterdir()):
        path.chmod(0o755)
    with volume() as data:
        options = (
            "--volume", f"{data}:/var/lib/postgresql",
            "--volume", f"{tmp_path}:/docker-entrypoint-initdb.d:ro",
            "--volume", f"{password}:/run/secrets/postgres_password:ro",
            "--tmpfs", "/var/run/postgresql:mode=1777",
            "--env", "POSTGRES_PASSWORD_FILE=/run/secrets/postgres_password",
            "--env", "POSTGRES_INITDB_ARGS=--auth-local=scram-sha-256 --auth-host=scram-sha-256",
        )  # fmt: skip
        query = ["psql", "-h", "127.0.0.1", "-U", "postgres", "-Atc"]
        image = pinned("POSTGRES_IMAGE")
        with running(image, "postgres", "-c", "shared_buffers=32MB", options=options) as server:
            wait_for(
                server, lambda: succeeds(server, "pg_isready", "-q", "-h", "127.0.0.1", "-U", "postgres")
            )
            ask = ["exec", "--env", "PGPASSWORD=from a file", server, *query]
            assert docker(*ask, "select x from t").stdout == "7\n"
            assert docker(*ask, "select 1 from pg_roles where rolname = 'app'").stdout == "1\n"
            assert docker(*ask, "show server_version_num").stdout.startswith("18")
            refused = docker("exec", "--env", "PGPASSWORD=wrong", server, *query, "select 1", check=False)
            assert "password authentication failed" in refused.stderr
            docker(*ask, "insert into t values (8)")
            docker("kill", "--signal", "KILL", server)
            docker("start", server)
            wait_for(
                server, lambda: succeeds(server, "pg_isready", "-q", "-h", "127.0.0.1", "-U", "postgres")
            )
            assert docker(*ask, "select sum(x) from t").stdout == "15\n"


def test_postgres_refuses_to_start_without_a_password():
    said = run(
        pinned("POSTGRES_IMAGE"),
        options=("--tmpfs", "/var/lib/postgresql:mode=1777", "--tmpfs", "/var/run/postgresql:mode=1777"),
        check=False,
    )
    assert "superuser password is not specified" in said


def test_the_broker_keeps_every_message_when_it_is_killed():
    with volume() as data:
        options = (
            "--volume", f"{data}:/var/lib/kafka/data", "--env", "KAFKA_LOG_DIRS=/var/lib/kafka/data",
            "--env", "KAFKA_LISTENERS=PLAINTEXT://0.0.0.0:9092,CONTROLLER://127.0.0.1:9093",
            "--env", "KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://localhost:9092",
        )  # fmt: skip
        with running(pinned("KAFKA_IMAGE"), options=options) as broker:
            versions = ["/opt/kafka/bin/kafka-broker-api-versions.sh", "--bootstrap-server", "localhost:9092"]
            wait_for(broker, lambda: succeeds(broker, *versions))
            topics = ["exec", broker, TOPICS, "--bootstrap-server", "localhost:9092"]
            create = [*topics, "--create", "--if-not-exists", "--topic", "t.v1", "--partitions", "2"]
            assert docker(*create).stdout == "Created topic t.v1.\n"
            assert docker(*create).stdout == "Topic t.v1 is there.\n"
            docker("exec", broker, "python3", "-c", PRODUCE)
            docker("kill", "--signal", "KILL", broker)
            docker("start", broker)
            wait_for(broker, lambda: succeeds(broker, *versions))
            assert docker(*topics, "--list").stdout == "t.v1\n"
            assert docker("exec", broker, "python3", "-c", CONSUME).stdout == "True\n"


def test_redis_asks_for_its_password_and_keeps_its_log():
    with volume() as data:
        command = ["redis-server", "--requirepass", "x", "--appendonly", "yes", "--appendfsync", "always"]
        with running(pinned("REDIS_IMAGE"), *command, options=("--volume", f"{data}:/data")) as server:
            cli = ["exec", "--env", "REDISCLI_AUTH=x", server, "redis-cli"]
            wait_for(server, lambda: docker(*cli, "ping", check=False).stdout == "PONG\n")
            assert "NOAUTH" in docker("exec", server, "redis-cli", "get", "a", check=False).stdout
            docker(*cli, "set", "a", "1")
            docker("kill", "--signal", "KILL", server)
            docker("start", server)
            wait_for(server, lambda: docker(*cli, "get", "a", check=False).stdout == "1\n")


def test_the_object_store_serves_s3_to_a_user_it_does_not_know():
    command = ["server", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3=true", "-s3.port=8333",
               "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]  # fmt: skip
    with (
        volume() as data,
        running(pinned("SEAWEEDFS_IMAGE"), *command, options=("--volume", f"{data}:/data")) as store,
    ):
        healthy = ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8333/healthz"]
        wait_for(store, lambda: succeeds(store, *healthy))


@pytest.mark.parametrize(
    ("setting", "port", "path"),
    [("PROMETHEUS_IMAGE", 9090, "-/ready"), ("ALERTMANAGER_IMAGE", 9093, "-/ready"),
     ("NODE_EXPORTER_IMAGE", 9100, "metrics"), ("REDIS_EXPORTER_IMAGE", 9121, "health"),
     ("POSTGRES_EXPORTER_IMAGE", 9187, "metrics")],
)  # fmt: skip
def test_monitoring_answers_on_its_port(setting: str, port: int, path: str, tmp_path: Path):
    configuration = tmp_path / "x.yml"
    configuration.write_text(
        "route: {receiver: none}\nreceivers: [{name: none}]\n" if port == 9093 else "{}\n"
    )
    for each in (tmp_path, configuration):
        each.chmod(0o755)
    options: tuple[str, ...] = ("--env", "DATA_SOURCE_NAME=postgresql://nobody@127.0.0.1/none")
    if port in (9090, 9093):
        folder = "prometheus" if port == 9090 else "alertmanager"
        options = (
            "--volume",
            f"{configuration}:/etc/{folder}/{folder}.yml:ro",
            "--tmpfs",
            f"/{folder}:mode=1777",
        )
    with running(pinned(setting), options=options) as server:
        address = f"http://127.0.0.1:{port}/{path}"
        wait_for(server, lambda: succeeds(server, "wget", "-q", "-O", "/dev/null", address))


def test_the_socket_proxys_program_reads_a_configuration(tmp_path: Path):
    file = tmp_path / "h.cfg"
    file.write_text("defaults\n mode http\n timeout client 1s\n timeout server 1s\n timeout connect 1s\n"
                    "frontend f\n bind :2375\n http-request deny\n")  # fmt: skip
    file.chmod(0o644)
    with running(
        pinned("SOCKET_PROXY_IMAGE"), "haproxy", "-f", "/x/h.cfg", options=("--volume", f"{file}:/x/h.cfg:ro")
    ) as proxy:
        asks = "exec 3<>/dev/tcp/127.0.0.1/2375 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q 403 <&3"
        wait_for(proxy, lambda: succeeds(proxy, "bash", "-c", asks))
