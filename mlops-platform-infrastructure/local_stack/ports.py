"""Loopback ports of an instance: defaults when free, others when taken, kept from run to run."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from local_stack.private_files import write_private

DEFAULT_PORTS: dict[str, int] = {
    "postgres": 5432,
    "valkey": 6379,
    "s3": 8333,
    "s3_grpc": 18333,
    "s3_master": 9333,
    "s3_master_grpc": 19333,
    "s3_volume": 9340,
    "s3_volume_grpc": 19340,
    "s3_filer": 8888,
    "s3_filer_grpc": 18888,
    "broker": 9092,
    "mlflow": 5000,
    "schema_registry": 8081,
    "fraud_api": 8001,
    "churn_api": 8002,
    "recommendation_api": 8003,
    "decision_page": 7860,
}
# Below the ranges from which Linux (32768+) and macOS (49152+) take ports for outgoing connections.
SEARCH_RANGE = range(20000, 32000)
SOCKET_DIR = Path("/tmp")  # noqa: S108 - SeaweedFS chose it


class NoFreePortError(RuntimeError):
    """No port is free in the range that is searched."""


def seaweedfs_sockets(port: int) -> list[Path]:
    """Return the socket files that SeaweedFS servers made for a gRPC port.

    Beside each gRPC port SeaweedFS listens on a socket in /tmp; its name is fixed but for the port. One that
    another account left behind makes the port unusable: it can be neither removed nor replaced.
    """
    return list(SOCKET_DIR.glob(f"seaweedfs-*-grpc-{port}.sock"))


def stale_sockets(ports: Iterable[int]) -> list[Path]:
    """Return those of our SeaweedFS sockets of these ports that no running server stands behind."""
    return [
        path
        for port in ports
        for path in seaweedfs_sockets(port)
        if path.lstat().st_uid == os.geteuid() and _can_listen(port)
    ]


def is_free(port: int) -> bool:
    """Say whether a server of ours could be started on this loopback port now."""
    foreign = any(path.lstat().st_uid != os.geteuid() for path in seaweedfs_sockets(port))
    return not foreign and _can_listen(port)


def _can_listen(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
        return True


def choose(
    wanted: Mapping[str, int],
    held: Collection[str] = (),
    avoid: Collection[int] = (),
    free: Callable[[int], bool] = is_free,
    candidates: Iterable[int] | None = None,
) -> dict[str, int]:
    """Return a port for each name of `wanted`, distinct and outside `avoid`.

    The wanted port is kept when it is free, or when its name is in `held`: our own server listens on it.
    Others come from `candidates`; by default SEARCH_RANGE in random order, so that two stacks that start at
    the same time hardly meet. Raises NoFreePortError when they are used up.
    """
    chosen = {name: wanted[name] for name in wanted if name in held}
    used = {*avoid, *chosen.values()}
    others = iter(random.sample(SEARCH_RANGE, len(SEARCH_RANGE)) if candidates is None else candidates)
    for name, port in wanted.items():
        if name in chosen:
            continue
        usable = (option for option in itertools.chain([port], others) if option not in used and free(option))
        chosen[name] = next(usable, 0)
        if not chosen[name]:
            raise NoFreePortError(f"no free port for {name}")
        used.add(chosen[name])
    return {name: chosen[name] for name in wanted}


def load(path: Path) -> dict[str, int]:
    """Return the ports recorded in `path`, with defaults for names it lacks."""
    recorded: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: int(recorded.get(name, default)) for name, default in DEFAULT_PORTS.items()}


def recorded_by_others(local_dir: Path, own: Path) -> set[int]:
    """Return the ports that the other instances in `local_dir` keep for themselves."""
    others = [path for path in local_dir.glob("stack*/ports.json") if path != own]
    return {int(port) for path in others for port in json.loads(path.read_text(encoding="utf-8")).values()}


def save(path: Path, ports: Mapping[str, int]) -> None:
    """Record the chosen ports."""
    write_private(path, json.dumps(dict(ports), indent=1) + "\n")
