"""The door between Airflow and the engine: what a task's container needs passes, all else is refused."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from server_tools import places, server_settings

pytestmark = pytest.mark.engine

PIN = server_settings.parse(places.VERSIONS.read_text(encoding="utf-8"))["SOCKET_PROXY_IMAGE"]
NETWORK = "door-server2_tasks"
WANTED: dict[str, Any] = {
    "Image": "mlops/feast-cli:dev",
    "User": "10001:10001",
    "Entrypoint": ["true"],
    "Env": ['REDIS_PASSWORD=with " and \\ in it'],
    "NetworkingConfig": {"EndpointsConfig": {NETWORK: {}}},
    "HostConfig": {
        "NetworkMode": NETWORK,
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "Binds": ["door-server2_platform-data:/var/lib/mlops/data:rw"],
        "Tmpfs": {"/tmp": "size=64m"},
        "PidsLimit": 64,
        "Memory": 67108864,
    },
}


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    name = f"door-{uuid.uuid4().hex[:8]}"
    configuration = places.SETUPS / "airflow" / "docker_api.cfg"
    docker("network", "create", NETWORK)
    docker("volume", "create", "door-server2_platform-data")
    docker(
        "run", "--detach", "--name", name, "--user", "0:0", "--cap-drop", "ALL", "--read-only",
        "--env", "TASK_USER=10001:10001", "--env", f"TASK_NETWORK={NETWORK}",
        "--env", "TASK_VOLUMES=door-server2_(platform-data|platform-reports|batch-spool)",
        "--publish", "127.0.0.1::2375",
        "--volume", f"{configuration}:/usr/local/etc/haproxy/docker_api.cfg:ro",
        "--volume", f"{host.removeprefix('unix://')}:/run/docker.sock:ro",
        PIN, "haproxy", "-f", "/usr/local/etc/haproxy/docker_api.cfg",
    )  # fmt: skip
    try:
        address = f"http://{docker('port', name, '2375/tcp').splitlines()[0]}"
        wait_until_it_answers(address)
        yield address
    finally:
        docker("rm", "--force", name)
        docker("volume", "rm", "door-server2_platform-data")
        docker("network", "rm", NETWORK)


def call(door: str, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(door + path, method=method, data=body)
    if body is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def wait_until_it_answers(door: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            assert call(door, "GET", "/_ping")[0] == 200
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_a_tasks_container_is_created_started_watched_and_removed(door: str) -> None:
    assert call(door, "GET", "/_ping")[0] == 200
    status, reply = call(door, "POST", "/v1.41/containers/create", json.dumps(WANTED).encode())
    assert status == 201, reply
    container = f"/v1.41/containers/{json.loads(reply)['Id']}"
    assert call(door, "POST", f"{container}/start")[0] == 204
    status, ended = call(door, "POST", f"{container}/wait")
    assert (status, json.loads(ended)["StatusCode"]) == (200, 0)
    assert call(door, "GET", f"{container}/json")[0] == 200
    assert call(door, "GET", f"{container}/logs?stdout=1")[0] == 200
    assert call(door, "DELETE", f"{container}?force=1&v=1")[0] == 204


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/containers/json"),
        ("GET", "/v1.41/images/json"),
        ("GET", "/info"),
        ("GET", "/secrets"),
        ("POST", "/v1.41/build"),
        ("POST", "/v1.41/images/create?fromImage=alpine"),
        ("POST", "/v1.41/containers/prune"),
        ("POST", f"/v1.41/containers/{'a' * 64}/exec"),
        ("POST", f"/v1.41/containers/{'a' * 64}/update"),
        ("PUT", f"/v1.41/containers/{'a' * 64}/archive?path=/"),
        ("GET", f"/v1.41/containers/{'a' * 64}/archive?path=/run/secrets"),
        ("GET", f"/v1.41/containers/{'a' * 64}/json/../../json"),
        ("GET", "/v1.41/containers/redis/json"),
        ("DELETE", "/v1.41/volumes/mlops-server1_postgres-data"),
        ("POST", "/v1.41//containers/create"),
        ("POST", "/v1.41/%63ontainers/create"),
    ],
)  # fmt: skip
def test_other_calls_are_refused(door: str, method: str, path: str) -> None:
    body = json.dumps(WANTED).encode() if method in {"POST", "PUT"} else None
    assert call(door, method, path, body)[0] == 403


def changed(**host: Any) -> dict[str, Any]:
    body = copy.deepcopy(WANTED)
    for name, value in host.items():
        if value is None:
            body["HostConfig"].pop(name)
        else:
            body["HostConfig"][name] = value
    return body


HOSTILE: dict[str, Any] = {
    "foreign image": {**WANTED, "Image": "alpine:3"},
    "image of another registry": {**WANTED, "Image": "evil.example/mlops/feast-cli:dev"},
    "root": {**WANTED, "User": "0:0"},
    "image's user": {key: value for key, value in WANTED.items() if key != "User"},
    "privileged": changed(Privileged=True),
    "privileged, in lower case": changed(privileged=True),
    "host network": changed(NetworkMode="host"),
    "another container's network": changed(NetworkMode="container:abc"),
    "writable": changed(ReadonlyRootfs=False),
    "capabilities kept": changed(CapDrop=None),
    "capability added": changed(CapAdd=["SYS_ADMIN"]),
    "confinement off": changed(SecurityOpt=["no-new-privileges:true", "apparmor=unconfined"]),
    "no security options": changed(SecurityOpt=None),
    "folder of the host": changed(Binds=["/:/host"]),
    "folder beside an allowed volume": changed(
        Binds=["door-server2_platform-data:/var/lib/mlops/data:rw", "/etc:/e:ro"]
    ),
    "foreign volume": changed(Binds=["mlops-server1_postgres-data:/d"]),
    "volume of a like name": changed(Binds=["xdoor-server2_platform-data:/d"]),
    "mount": changed(Mounts=[{"Type": "bind", "Source": "/", "Target": "/host"}]),
    "volumes of another": changed(VolumesFrom=["redis"]),
    "device": changed(Devices=[{"PathOnHost": "/dev/sda"}]),
    "host's processes": changed(PidMode="host"),
    "host's memory": changed(IpcMode="host"),
    "host's users": changed(UsernsMode="host"),
    "published port": changed(PortBindings={"22/tcp": [{"HostPort": "22"}]}),
    "another runtime": changed(Runtime="other"),
    "unmasked paths": changed(MaskedPaths=[]),
    "docker's group": changed(GroupAdd=["999"]),
    "second network": {
        **WANTED,
        "NetworkingConfig": {"EndpointsConfig": {"mlops-server2_orchestration": {}}},
    },
}
RAW: dict[str, bytes] = {
    "second key of the same name": json.dumps(WANTED).encode()[:-1] + b', "Image": "alpine:3"}',
    "second key in another case": json.dumps(WANTED).encode()[:-1] + b', "hostconfig": {"Privileged": true}}',
    "escaped key": json.dumps(WANTED).encode()[:-1] + b', "\\u0049mage": "alpine:3"}',
    "too large": json.dumps({**WANTED, "Env": ["A=" + "x" * 70_000]}).encode(),
    "no JSON": b"x=1",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_container_that_could_do_more_is_refused(door: str, what: str) -> None:
    assert call(door, "POST", "/v1.41/containers/create", json.dumps(HOSTILE[what]).encode())[0] == 403


@pytest.mark.parametrize("what", RAW)
def test_a_body_that_two_readers_could_read_differently_is_refused(door: str, what: str) -> None:
    assert call(door, "POST", "/v1.41/containers/create", RAW[what])[0] == 403
