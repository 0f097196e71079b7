"""`make test-compose`: three servers come up, a transaction becomes a decision, whatever dies loses nothing.

The tests build on each other and run in this order: servers up, data and models through Airflow's own DAGs,
the way of one transaction, every service restarted and killed. With SERVERS=core only what a transaction
passes comes up (database, stream, online store, fraud API), on the model that the small demo has trained.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from three_servers import (
    ADDRESSES,
    LOCAL_DIR,
    NOT_HERE,
    PROJECT,
    Airflow,
    HttpError,
    Servers,
    addresses,
    http,
    run,
)

from local_stack import settings
from local_stack.instance import open_instance

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

UP_SECONDS = 300
FRESH_SECONDS = 30
SCOPE = os.environ.get("SERVERS", "all")
# What a transaction passes on its way to a decision; the jobs that these need come along.
CORE = {"postgres", "kafka", "schema-registry", "stream-processor", "feast-apply", "redis", "fraud-api"}
API = f"http://{ADDRESSES['3']}:8001"
CUSTOMER, TERMINAL = 7, 11
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
SNAPSHOT = TODAY - timedelta(days=31)  # old enough for the labels of churn to be known

_PUBLISH = """
import sys, time
from kafka import KafkaProducer
producer = KafkaProducer(bootstrap_servers="server1:9092", acks="all")
for line in sys.stdin:
    key, _, value = line.rstrip("\\n").partition(" ")
    producer.send("transactions.v1", key=key.encode(), value=value.encode()).get(20)
print(time.time())
producer.close()
"""
_READ_DECISIONS = """
import sys, time
from kafka import KafkaConsumer
wanted = set(sys.stdin.read().split())
consumer = KafkaConsumer("decisions.v1", bootstrap_servers="server1:9092", auto_offset_reset="earliest")
ends = time.monotonic() + 60
while wanted and time.monotonic() < ends:
    for records in consumer.poll(500).values():
        wanted -= {record.key.decode() for record in records}
consumer.close()
print("missing:", *sorted(wanted))
"""


@pytest.fixture(scope="module")
def report() -> Iterator[dict[str, Any]]:
    """What was measured; `.local/reports/servers.json` gets it when all is done."""
    measured: dict[str, Any] = {}
    yield measured
    target = Path(os.environ.get("REPORTS_DIR") or LOCAL_DIR / "reports") / "servers.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    results = [
        {
            "name": name,
            "value": round(value, 1),
            "unit": "s",
            "target": target,
            "met": target is None or value <= target,
        }
        for name, (value, target) in measured.items()
    ]
    document = {
        "command": f"make test-compose SERVERS={SCOPE}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.uname().machine}, {os.cpu_count()} cores",
        "results": results,
    }
    target.write_text(json.dumps(document, indent=1) + "\n")


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    if os.geteuid() != 0:
        pytest.skip("only root can give this machine the addresses of three servers")
    folder = LOCAL_DIR / "servers-test"
    with addresses():
        found = Servers(folder)
        if folder.exists():  # of a run that was cut off
            found.down()
            shutil.rmtree(folder)
        found.prepare()
        try:
            yield found
        finally:
            if not os.environ.get("KEEP_SERVERS"):
                found.down()
                shutil.rmtree(folder)


def left_out(servers: Servers) -> str:
    """Return the services that this run does without: what can't run here, or all but the core."""
    if SCOPE == "all":
        return NOT_HERE
    needed: set[str] = set()
    every: set[str] = set()
    for services in servers.services().values():
        every |= set(services)
        open_ends = CORE & set(services)
        while open_ends:
            needed |= open_ends
            depended = {need for name in open_ends for need in services[name].get("depends_on") or ()}
            open_ends = depended - needed
    return " ".join(sorted(every - needed))


@pytest.fixture(scope="module")
def without(servers: Servers) -> str:
    return left_out(servers)


@pytest.fixture(scope="module")
def up(servers: Servers, without: str, report: dict[str, Any]) -> Servers:
    for number in ADDRESSES:
        if SCOPE == "core" and number == "3":
            give_trained_model(servers)
        took = servers.up(number, servers.folder / "up.json", without)
        report[f"server {number} healthy after"] = (took[""], UP_SECONDS)
        report.update({f"server {number}: {name}": (value, None) for name, value in took.items() if name})
    return servers


def give_trained_model(servers: Servers) -> None:
    """Put the fraud model that the small demo trained where the API keeps the last good one."""
    stack = open_instance("test")
    assert stack.env_file.is_file(), "the small demo has to have run: make test-e2e"
    spool = Path(settings.read(stack.env_file)["SPOOL_DIR"])
    note = spool / "fraud_detection_api" / "last_good.json"
    bundle = f"bundles/{json.loads(note.read_text())['bundle_sha256']}"
    volume = f"{PROJECT}-server3_fraud-spool"
    run("docker", "volume", "create", "--label", f"com.docker.compose.project={PROJECT}-server3",
        "--label", "com.docker.compose.volume=fraud-spool", volume)  # fmt: skip
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name in ("fraud_detection_api/last_good.json", bundle):
                tar.add(spool / name, name)
        packed.seek(0)
        subprocess.run(
            ["docker", "run", "--rm", "--interactive", "--user", "0", "--volume", f"{volume}:/spool",
             "mlops/feast-cli:dev", "sh", "-c", "tar -C /spool -xf - && chown -R 10001:10001 /spool"],
            stdin=packed, check=True, capture_output=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def filled(up: Servers, report: dict[str, Any]) -> Servers:
    """The servers with data and a champion, made by the production DAGs; of the core: as they are."""
    if SCOPE == "core":
        return up
    landing = "/var/lib/mlops/data/landing/transactions"
    up.in_image(
        "mlops/feast-cli:dev",
        [
            "python", "-m", "data_transformation_pipelines.python_scripts_feast.simulate_transactions",
            "--customers", "500", "--terminals", "1000", "--days", "183",
            "--end-date", str((TODAY - timedelta(days=1)).date()), "--out", landing,
        ],
        volumes=[f"{PROJECT}-server2_platform-data:/var/lib/mlops/data"],
    )  # fmt: skip
    airflow = Airflow(up)
    runs: list[tuple[str, dict[str, Any]]] = [
        ("run_dbt_feast_models", {"snapshot_date": str(SNAPSHOT.date())}),
        ("materialize_feast_online_store", {}),
        ("train_fraud_detection_xgboost", {}),
    ]
    for dag, conf in runs:
        report[f"DAG {dag}"] = (airflow.run(dag, conf, TODAY.isoformat()), None)
    return up


def key_of(servers: Servers) -> dict[str, str]:
    return {"X-API-Key": servers.secret("demo_api_key")}


def decide(servers: Servers, amount: float = 57.16, request_id: str = "") -> dict[str, Any]:
    body = {"customer_id": CUSTOMER, "terminal_id": TERMINAL, "tx_amount": amount}
    headers = key_of(servers) | {"X-Request-ID": request_id or f"servers-{uuid.uuid4()}"}
    reply: dict[str, Any] = http(f"{API}/predict", body, headers=headers)
    return reply


def features(servers: Servers, request_id: str) -> dict[str, float]:
    record = http(f"{API}/decisions/{request_id}", headers=key_of(servers))
    found: dict[str, float] = record["features"]
    return found


def pay(servers: Servers, count: int) -> float:
    """Let the customer pay `count` times: messages on server 1's topic; returns when they were there."""
    now = datetime.now(UTC)
    lines = []
    for n in range(count):
        at = now - timedelta(seconds=count - n)
        paid = {
            "transaction_id": int(now.timestamp() * 1_000_000) + n,
            "tx_datetime": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "customer_id": CUSTOMER,
            "terminal_id": TERMINAL,
            "tx_amount": 10.25,
        }
        lines.append(f"{CUSTOMER} {json.dumps(paid)}")
    return float(
        servers.in_image("mlops/feast-cli:dev", ["python", "-c", _PUBLISH], text="\n".join(lines) + "\n")
    )


def wait_for_count(servers: Servers, expected: float) -> None:
    """Wait until a decision rests on that many payments of today."""
    began = time.monotonic()
    while True:
        reply = decide(servers)
        found = features(servers, reply["request_id"])["customer_tx_count_1d"]
        if found == expected:
            return
        assert time.monotonic() - began < FRESH_SECONDS, f"{found} payments are known, not {expected}"
        time.sleep(0.2)


def recorded(servers: Servers, ids: set[str], seconds: float = 60) -> set[str]:
    """Return those of the ids that PostgreSQL has exactly once, after waiting for all of them."""
    ends = time.monotonic() + seconds
    while True:
        rows = servers.query(
            "decisions",
            "select request_id, count(*) from decisions.decision_records"
            " where request_id = any(%s) group by 1",
            sorted(ids),
        )
        assert all(count == 1 for _, count in rows)
        found = {request_id for request_id, _ in rows}
        if found == ids or time.monotonic() > ends:
            return found
        time.sleep(0.5)


class Client(threading.Thread):
    """Asks for decisions all the time, each again until it is answered; knows what was acknowledged."""

    def __init__(self, servers: Servers) -> None:
        super().__init__(daemon=True)
        self._servers = servers
        self.ended = threading.Event()
        self.acknowledged: dict[str, float] = {}
        self.broken = 0

    def run(self) -> None:
        amount = 1.0
        while not self.ended.is_set():
            amount += 0.25
            request_id = f"servers-{uuid.uuid4()}"
            while not self.ended.is_set():
                try:
                    reply = decide(self._servers, amount, request_id)
                except HttpError:
                    self.broken += 1
                    time.sleep(0.2)
                    continue
                self.acknowledged[request_id] = reply["score"]
                break
            time.sleep(0.02)


def test_each_server_is_healthy_within_five_minutes(up: Servers, report: dict[str, Any]) -> None:
    assert {one.server for one in up.long_running()} == {"1", "2", "3"}
    assert all(one.well for one in up.long_running())
    for number in ADDRESSES:
        seconds, target = report[f"server {number} healthy after"]
        assert seconds <= target


def test_coming_up_again_changes_nothing(up: Servers, without: str) -> None:
    before = {(one.server, one.service): one.id for one in up.long_running()}
    for number in ADDRESSES:
        up.up(number, up.folder / "again.json", without)
    assert {(one.server, one.service): one.id for one in up.long_running()} == before


def test_nothing_listens_on_an_address_that_was_not_named(up: Servers) -> None:
    bound = set()
    for one in up.long_running():
        ports = json.loads(run("docker", "inspect", "--format", "{{json .NetworkSettings.Ports}}", one.id))
        bound |= {binding["HostIp"] for bindings in ports.values() for binding in bindings or ()}
    assert bound
    assert bound <= set(ADDRESSES.values())


def test_the_champion_is_served(filled: Servers) -> None:
    ends = time.monotonic() + 60
    while True:
        try:
            ready = http(f"{API}/readyz")
            break
        except HttpError:
            assert time.monotonic() < ends
            time.sleep(0.5)
    assert ready["ready"]
    assert ready["model"]["name"] == "fraud-detection-model"


def test_a_transaction_travels_from_the_topic_to_the_decision_and_back(
    filled: Servers, report: dict[str, Any]
) -> None:
    first = decide(filled)
    known = features(filled, first["request_id"])["customer_tx_count_1d"]
    paid_at = pay(filled, 3)
    wait_for_count(filled, known + 3)
    report["payment to decision, at most"] = (time.time() - paid_at, FRESH_SECONDS)
    last = decide(filled)
    assert last["rung"] == "online"
    assert recorded(filled, {first["request_id"], last["request_id"]}) == {
        first["request_id"],
        last["request_id"],
    }
    ids = f"{first['request_id']}\n{last['request_id']}\n"
    read = filled.in_image("mlops/feast-cli:dev", ["python", "-c", _READ_DECISIONS], text=ids)
    assert read.split() == ["missing:"]
    explained = http(
        f"{API}/decisions/{last['request_id']}/explain", headers=key_of(filled), method="POST", body={}
    )
    assert explained["reproduced"]


@pytest.mark.parametrize("how", ["restart", "kill"] if SCOPE == "all" else ["kill"])
def test_every_service_comes_back_and_nothing_is_lost(
    how: str, filled: Servers, report: dict[str, Any]
) -> None:
    before = {
        table: filled.query("feature_store", f"select count(*) from {table}")[0][0]
        for table in ("raw.transactions", "features.fct_customer_daily", "raw.subscribers")
    }
    known = features(filled, decide(filled)["request_id"])["customer_tx_count_1d"]
    client = Client(filled)
    client.start()
    try:
        for one in filled.long_running():
            began = time.monotonic()
            current = filled.again(one)
            if how == "restart":
                run("docker", "restart", "--time", "30", current.id)
            else:
                os.kill(current.pid, signal.SIGKILL)  # as the kernel does; the engine was not asked
                time.sleep(0.5)
            filled.settle()
            report[f"{how}: server {one.server}, {one.service} well again after"] = (
                time.monotonic() - began,
                None,
            )
        pay(filled, 2)
        wait_for_count(filled, known + 2)
    finally:
        client.ended.set()
        client.join(30)
    assert len(client.acknowledged) > 100
    acknowledged = set(client.acknowledged)
    assert recorded(filled, acknowledged) == acknowledged
    for table, count in before.items():
        assert filled.query("feature_store", f"select count(*) from {table}")[0][0] == count
    sample = sorted(acknowledged)[:: max(1, len(acknowledged) // 20)]
    for request_id in sample:
        found = http(f"{API}/decisions/{request_id}", headers=key_of(filled))
        assert found["score"] == client.acknowledged[request_id]
