"""A service is replaced by another version under load: two instances behind a proxy, and one alone.

Needs a Docker Engine and a running embedded stack whose settings are loaded (`local_stack exec`): features,
models and decisions are the real ones.
"""

import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from server_tools.backup.drill_containers import docker, images

pytestmark = [pytest.mark.engine, pytest.mark.timeout(560)]

CURRENT, NEXT = "mlops/fraud-detection-api:dev", "mlops/fraud-detection-api:drill-next"
BODY = {"customer_id": 1, "terminal_id": 1, "tx_amount": 57.16}
READY_SECONDS = 150.0
PATIENCE_SECONDS = 150.0
# A decision's request id makes it safe to ask again, so the proxy may repeat a POST.
PROXY = """
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout check 10s
  retries 5
  option redispatch 1
  retry-on conn-failure empty-response response-timeout 503
frontend clients
  bind 127.0.0.1:{port}
  default_backend instances
backend instances
  option httpchk GET /readyz
  http-check expect status 200
  default-server check inter 500ms fall 2 rise 1
  server a 127.0.0.1:{a}
  server b 127.0.0.1:{b}
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def versions() -> Iterator[None]:
    if "DEMO_API_KEY" not in os.environ:
        pytest.skip("the settings of a running embedded stack are not loaded")
    if docker("image", "inspect", CURRENT, check=False).returncode:
        pytest.skip(f"there is no image {CURRENT}: make images")
    container = docker("create", CURRENT).stdout.strip()
    docker("commit", "--change", "LABEL mlops.version=next", container, NEXT)
    docker("rm", "--volumes", container)
    yield
    docker("rmi", NEXT, check=False)


class Instance:
    """One container of the service on this machine's own network."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = f"mlops-roll-{name}-{uuid.uuid4().hex[:6]}"
        self.port = free_port()
        self.spool = folder / f"spool-{name}"
        self.spool.mkdir(mode=0o700)
        os.chown(self.spool, 10001, 10001)
        self.keys = folder / f"keys-{name}.json"
        self.keys.write_bytes(Path(os.environ["API_KEYS_FILE"]).read_bytes())
        self.keys.chmod(0o444)

    def start(self, image: str) -> None:
        passed = ("REDIS_", "DECISIONS_DB_", "MLFLOW_TRACKING", "KAFKA_")
        settings = [part for name in os.environ if name.startswith(passed) for part in ("--env", name)]
        docker(
            "run", "--detach", "--name", self.name, "--network", "host", "--read-only", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges", "--memory", "768m", "--tmpfs", "/tmp:size=64m", *settings,
            "--volume", f"{self.spool}:/var/lib/decision-service",
            "--volume", f"{self.keys}:/etc/decision-service/api_keys.json:ro",
            "--env", "API_KEYS_FILE=/etc/decision-service/api_keys.json",
            "--env", "SERVICE_HOST=127.0.0.1", "--env", f"SERVICE_PORT={self.port}", image,
        )  # fmt: skip

    def replace_by(self, image: str) -> None:
        docker("stop", "--time", "60", self.name)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", self.name).stdout.strip() == "0"
        docker("rm", "--volumes", self.name)
        self.start(image)

    def wait_ready(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            try:
                ask(f"http://127.0.0.1:{self.port}/readyz")
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail(
            f"{self.name} is not ready: {docker('logs', '--tail', '20', self.name, check=False).stdout}"
        )


def ask(url: str, body: dict | None = None, request_id: str = "") -> dict:
    headers = {"X-API-Key": os.environ["DEMO_API_KEY"], "Content-Type": "application/json"}
    if request_id:
        headers["X-Request-ID"] = request_id
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


class Clients:
    """Four clients that ask for decisions without pause; with `patience`, one asks again with the same id."""

    def __init__(self, url: str, patience: float = 0.0) -> None:
        self.url, self.patience = url, patience
        self.decided: dict[str, str] = {}
        self.failed: list[str] = []
        self.again = 0
        self.longest = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            request_id = f"roll-{uuid.uuid4()}"
            began = time.monotonic()
            while True:
                try:
                    reply = ask(f"{self.url}/predict", BODY, request_id)
                    self.decided[request_id] = reply["decision"]
                    self.longest = max(self.longest, time.monotonic() - began)
                    break
                except (urllib.error.HTTPError, OSError) as error:
                    if time.monotonic() - began > self.patience:
                        self.failed.append(f"{error} {getattr(error, 'headers', '')}"[:300])
                        break
                    self.again += 1
                    time.sleep(0.25)
            time.sleep(0.02)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    return tmp_path


@pytest.fixture
def proxy_name() -> Iterator[str]:
    name = f"mlops-roll-proxy-{uuid.uuid4().hex[:6]}"
    yield name
    docker("rm", "--force", name, check=False)


@pytest.fixture
def instances(folder: Path) -> Iterator[list[Instance]]:
    made = [Instance(folder, "a"), Instance(folder, "b")]
    yield made
    docker("rm", "--force", "--volumes", *(each.name for each in made), check=False)


@pytest.mark.usefixtures("versions")
def test_two_instances_behind_a_proxy_lose_no_request(instances, folder, proxy_name):
    port = free_port()
    for each in instances:
        each.start(CURRENT)
    for each in instances:
        each.wait_ready()
    config = folder / "haproxy.cfg"
    config.write_text(PROXY.format(port=port, a=instances[0].port, b=instances[1].port))
    config.chmod(0o644)
    docker(
        "run", "--detach", "--name", proxy_name, "--network", "host", "--user", "10001:10001",
        "--volume", f"{config}:/etc/haproxy.cfg:ro", images()["SOCKET_PROXY_IMAGE"],
        "haproxy", "-W", "-db", "-f", "/etc/haproxy.cfg",
    )  # fmt: skip
    time.sleep(2)
    clients = Clients(f"http://127.0.0.1:{port}")
    time.sleep(3)
    for each in instances:
        each.replace_by(NEXT)
        each.wait_ready()
        time.sleep(2)
    clients.stop()
    print(f"behind a proxy: {len(clients.decided)} decisions, {len(clients.failed)} failed, "
          f"longest {clients.longest:.1f} s")  # fmt: skip
    assert Counter(clients.failed) == {}
    assert len(clients.decided) > 100
    _all_recorded(instances[0], clients)


@pytest.mark.usefixtures("versions")
def test_one_instance_alone_loses_no_decision_of_a_client_that_asks_again(instances, folder):
    alone = instances[0]
    alone.start(CURRENT)
    alone.wait_ready()
    clients = Clients(f"http://127.0.0.1:{alone.port}", patience=PATIENCE_SECONDS)
    time.sleep(3)
    began = time.monotonic()
    alone.replace_by(NEXT)
    alone.wait_ready()
    gap = time.monotonic() - began
    time.sleep(2)
    clients.stop()
    counted = f"{len(clients.decided)} decisions, {clients.again} asked again, {len(clients.failed)} failed"
    print(f"alone: {counted}, replaced in {gap:.1f} s, longest {clients.longest:.1f} s")
    assert clients.failed == []
    assert clients.again > 0, "the replacement was not noticed, so nothing was tried"
    _all_recorded(alone, clients)


def _all_recorded(instance: Instance, clients: Clients) -> None:
    for request_id in list(clients.decided)[:: max(1, len(clients.decided) // 40)]:
        found = ask(f"http://127.0.0.1:{instance.port}/decisions/{request_id}")
        assert found["decision"] == clients.decided[request_id]
