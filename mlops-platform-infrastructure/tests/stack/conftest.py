"""An instance in a temporary folder, and services that are tiny Python programs."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local_stack import health
from local_stack.instance import Instance, open_instance
from local_stack.services import Service
from local_stack.supervisor import Supervisor

ECHO_SERVER = """
import socket, sys, time
print("listening", flush=True)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = server.accept()
    connection.sendall(b"hello")
    connection.close()
"""


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    made = open_instance("unit", tmp_path)
    made.create_folders()
    return made


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def say_hello(port: int) -> None:
    """Health check of ECHO_SERVER."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            if connection.recv(5) != b"hello":
                raise health.NotReadyError("no hello")
    except OSError as error:
        raise health.NotReadyError(str(error)) from error


@pytest.fixture
def make_service(instance: Instance, free_port: int) -> Callable[..., Service]:
    def make(
        name: str = "echo", program: str = ECHO_SERVER, port: int = free_port, **fields: object
    ) -> Service:
        settings: dict[str, object] = {
            "name": name,
            "title": name,
            "port": port,
            "ports": (name,),
            "command": lambda: [sys.executable, "-c", program, str(port)],
            "check": lambda: say_hello(port),
            "cwd": instance.service_dir(name),
            "start_seconds": 10,
            "stop_seconds": 5,
        }
        return Service(**{**settings, **fields})  # type: ignore[arg-type]

    return make


@pytest.fixture
def supervise(instance: Instance) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def make(*services: Service) -> Supervisor:
        made.append(Supervisor(instance, {service.name: service for service in services}))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.down()
