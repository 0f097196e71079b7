"""The three servers on one Docker Engine, each at an address of its own, as ops and clients see them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import yaml

PLATFORM = Path(__file__).resolve().parents[2]
LOCAL_DIR = Path(os.environ.get("LOCAL_DIR") or PLATFORM.parent / ".local").resolve()
PROJECT = "mlops-test"
# A network for benchmarks and tests (RFC 2544): nobody's own machines are there.
ADDRESSES = {"1": "198.18.77.1", "2": "198.18.77.2", "3": "198.18.77.3"}
# No stand-in can be made of them: neither Debian nor the package index has the programs.
NOT_HERE = "grafana elasticsearch kibana filebeat jenkins"
SETTLED_SECONDS = 180.0


class TestServersError(Exception):
    """The servers did not do what was asked of them; the message holds what they said."""


def run(*command: str, **environment: str) -> str:
    """Run a command of the platform's root and return what it printed; raises TestServersError."""
    done = subprocess.run(
        command, cwd=PLATFORM, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise TestServersError(f"{' '.join(command)[:300]}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return done.stdout


@contextmanager
def addresses() -> Iterator[None]:
    """Give the machine one address a server, and take them away again."""
    given = []
    for address in ADDRESSES.values():
        added = subprocess.run(
            ["ip", "address", "add", f"{address}/32", "dev", "lo"],
            capture_output=True,
            text=True,
            check=False,
        )
        if added.returncode == 0:
            given.append(address)
        elif "exists" not in added.stderr and "assigned" not in added.stderr:
            raise TestServersError(f"no address for a server: {added.stderr}")
    try:
        yield
    finally:
        for address in () if os.environ.get("KEEP_SERVERS") else given:
            run("ip", "address", "del", f"{address}/32", "dev", "lo")


@dataclass(frozen=True)
class Container:
    """One container of a server as the engine describes it."""

    server: str
    service: str
    id: str
    status: str
    health: str
    pid: int
    job: bool

    @property
    def well(self) -> bool:
        """Whether it runs and says that it is healthy, if it says anything."""
        return self.status == "running" and self.health in {"", "healthy"}


class Servers:
    """A set of servers of the test's own: folder, secrets, projects, volumes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {"MLOPS_SERVERS_DIR": str(folder), "COMPOSE_PROJECT": PROJECT}

    def prepare(self) -> None:
        """Generate secrets and settings, and set the addresses."""
        self.tool("secrets")
        file = self.folder / "servers.env"
        text = file.read_text()
        socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
        data = json.loads(run("docker", "info", "--format", "{{json .DockerRootDir}}"))
        settings = {
            **{f"SERVER{number}_HOST": address for number, address in ADDRESSES.items()},
            "UI_BIND": ADDRESSES["2"],
            "API_BIND": ADDRESSES["3"],
            "COMPOSE_PROJECT": PROJECT,
            "DOCKER_SOCKET": socket,
            "DOCKER_GID": str(Path(socket).stat().st_gid),
            "DOCKER_CONTAINERS_DIR": f"{data}/containers",
        }
        for name, value in settings.items():
            text, found = re.subn(rf"(?m)^{name}=.*$", f"{name}={value}", text)
            assert found == 1, f"servers.env has no {name}"
        file.write_text(text)

    def tool(self, *words: str, **environment: str) -> str:
        """Run `python -m server_tools` on this set."""
        return run(sys.executable, "-m", "server_tools", *words, **self._environment | environment)

    def services(self) -> dict[str, dict[str, Any]]:
        """Return what each server would run, by server and service."""
        found = {}
        for server in ADDRESSES:
            resolved = self.tool("config", "--server", server)
            found[server] = yaml.safe_load(resolved[resolved.index("name:") :])["services"]
        return found

    def up(self, server: str, report: Path, without: str = NOT_HERE) -> dict[str, float]:
        """Bring a server up as ops do; returns the seconds by service, "" for the server."""
        self.tool("up", "--server", server, "--json", str(report), WITHOUT=without)
        lines = json.loads(report.read_text())["results"]
        return {line["name"].partition("/")[2]: line["value"] for line in lines}

    def down(self) -> None:
        """End all servers and delete what they kept."""
        self.tool("down", "--server", "all", "--delete-data")

    def secret(self, name: str) -> str:
        """Return a secret of this set."""
        return (self.folder / "secrets" / name).read_text().strip()

    def containers(self) -> list[Container]:
        """Return all containers of the three servers, jobs that have ended too."""
        ids = run(
            "docker", "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.oneoff=False",
            "--filter", "label=com.docker.compose.project",
        ).split()  # fmt: skip
        found = []
        for one in json.loads(run("docker", "inspect", *ids)) if ids else ():
            labels, state = one["Config"]["Labels"], one["State"]
            project, _, server = labels["com.docker.compose.project"].rpartition("-server")
            if project != PROJECT:
                continue
            policy = one["HostConfig"]["RestartPolicy"]["Name"]
            found.append(
                Container(
                    server,
                    labels["com.docker.compose.service"],
                    one["Id"],
                    state["Status"],
                    (state.get("Health") or {}).get("Status", ""),
                    state["Pid"],
                    job=policy in {"no", "on-failure"},
                )
            )
        return sorted(found, key=lambda one: (one.server, one.service))

    def long_running(self) -> list[Container]:
        """Return the containers of services, not of jobs."""
        return [one for one in self.containers() if not one.job]

    def again(self, known: Container) -> Container:
        """Return a container as it is now."""
        return next(one for one in self.long_running() if one.id == known.id)

    def settle(self, seconds: float = SETTLED_SECONDS) -> float:
        """Wait until every service is well; returns the seconds it took. Raises TestServersError."""
        began = time.monotonic()
        while ill := [one for one in self.long_running() if not one.well]:
            if time.monotonic() - began > seconds:
                said = "\n".join(
                    f"{one.service} ({one.status}, {one.health}):\n"
                    + run("docker", "logs", "--tail", "30", one.id)
                    for one in ill
                )
                raise TestServersError(f"not well after {seconds:.0f} s:\n{said}")
            time.sleep(0.5)
        return time.monotonic() - began

    def in_image(
        self, image: str, command: Sequence[str], *, volumes: Sequence[str] = (), text: str = ""
    ) -> str:
        """Run a command in a container of one of our images that reaches the servers by their names."""
        secrets = [
            f"{name.upper()}={self.secret(name)}"
            for name in ("feature_store_db_password", "decisions_db_password", "redis_password")
        ]
        hosts = [f"server{number}:{address}" for number, address in ADDRESSES.items()]
        words = [
            "docker", "run", "--rm", "--interactive", "--user", "10001:10001",
            *(part for host in hosts for part in ("--add-host", host)),
            *(part for value in (*secrets, *PLATFORM_SETTINGS) for part in ("--env", value)),
            *(part for volume in volumes for part in ("--volume", volume)),
            image, *command,
        ]  # fmt: skip
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise TestServersError(
                f"{image} {' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        return done.stdout

    def query(self, database: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask PostgreSQL on server 1, as the role that owns the database."""
        with psycopg.connect(
            host=ADDRESSES["1"],
            dbname=database,
            user=database,
            password=self.secret(f"{database}_db_password"),
        ) as connection:
            return connection.execute(statement.encode(), values).fetchall()


PLATFORM_SETTINGS = (
    "FEATURE_STORE_DB_HOST=server1", "FEATURE_STORE_DB_PORT=5432", "FEATURE_STORE_DB_NAME=feature_store",
    "FEATURE_STORE_DB_USER=feature_store", "REDIS_HOST=server2", "REDIS_PORT=6379",
    "KAFKA_BOOTSTRAP_SERVERS=server1:9092", "DATA_DIR=/var/lib/mlops/data", "HOME=/tmp",
)  # fmt: skip


class HttpError(Exception):
    """A server answered with an error, or not at all."""


def http(
    url: str, body: Any = None, *, headers: Mapping[str, str] = {}, method: str = "", seconds: float = 15
) -> Any:
    """Send JSON and return the JSON that comes back; raises HttpError."""
    request = urllib.request.Request(
        url,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
        method=method or None,
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise HttpError(f"{error.code} {url}: {error.read()[:500]!r}") from None
    except OSError as error:
        raise HttpError(f"{url}: {error}") from None


class Airflow:
    """Airflow on server 2, through its REST API."""

    def __init__(self, servers: Servers) -> None:
        self._url = f"http://{ADDRESSES['2']}:8080"
        login = {"username": "admin", "password": servers.secret("airflow_admin_password")}
        token = http(f"{self._url}/auth/token", login)["access_token"]
        self._headers = {"Authorization": f"Bearer {token}"}

    def run(self, dag: str, conf: Mapping[str, Any], logical_date: str, seconds: float = 600) -> float:
        """Run a DAG to its end; returns the seconds. Raises TestServersError with the log of what failed."""
        began = time.monotonic()
        api = f"{self._url}/api/v2/dags/{dag}"
        http(api, {"is_paused": False}, headers=self._headers, method="PATCH")
        started = http(
            f"{api}/dagRuns", {"logical_date": logical_date, "conf": dict(conf)}, headers=self._headers
        )
        this = f"{api}/dagRuns/{started['dag_run_id']}"
        while (state := http(this, headers=self._headers)["state"]) not in {"success", "failed"}:
            if time.monotonic() - began > seconds:
                raise TestServersError(f"{dag} is {state} after {seconds:.0f} s")
            time.sleep(1)
        if state == "failed":
            tasks = http(f"{this}/taskInstances", headers=self._headers)["task_instances"]
            bad = [task["task_id"] for task in tasks if task["state"] == "failed"]
            logs = [str(http(f"{this}/taskInstances/{name}/logs/1", headers=self._headers)) for name in bad]
            raise TestServersError(f"{dag} failed in {bad}:\n" + "\n".join(log[-4000:] for log in logs))
        return time.monotonic() - began
