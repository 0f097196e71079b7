"""Runs a command of another root in a container of that root's image, through the Docker API.

The API is reached at DOCKER_HOST: on the servers a proxy of the engine's socket that lets little through.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runners.local_process import (
    LAST_LINES,
    PRIVATE,
    CommandFailedError,
    NotSetUpError,
    cleaned,
    ending,
    expand,
)

# Which image runs what: the longest of these that a task's root and working folder begin with.
IMAGES: Mapping[str, str] = {
    "feature-store-management": "mlops/feast-cli",
    "ml-model-development/models/customer_churn_lightgbm": "mlops/churn-training",
    "ml-model-development/models/fraud_detection_xgboost": "mlops/fraud-training",
    "ml-model-development/models/movie_recommendation_hybrid": "mlops/recommendation-training",
    "ml-model-services/services/customer_churn_api": "mlops/customer-churn-api",
    "ml-model-services/services/fraud_detection_api": "mlops/fraud-detection-api",
    "ml-model-services/services/movie_recommendation_api": "mlops/movie-recommendation-api",
    "ml-reporting-and-monitoring-logic": "mlops/reporting",
    "mlops-platform-infrastructure": "mlops/backup",
}
APP = "/app"
# What belongs to the worker's own container, and not to the platform.
_OWN = re.compile(
    r"^(_|PATH|HOME|HOSTNAME|USER|LOGNAME|PWD|OLDPWD|SHLVL|TERM|VENV|LOCAL_DIR|GPG_KEY|TMPDIR|MPLCONFIGDIR)$"
    r"|^(PYTHON|LD_|DOCKER_|ROOT_COMMAND_|MLOPS_|NSS_WRAPPER_|SSL_|PIP_|LC_|LANG)"
)
# Settings that the tasks of one root alone are given: a dump reads all that MLflow's users ever wrote.
_OF_ONE_ROOT = {re.compile(r"^MLFLOW_(DB|BACKUP)_"): "mlops-platform-infrastructure"}
_STAMPED = re.compile(rb"(\S+)Z (.*)", re.DOTALL)
_RECONNECTS = 10
_KILLED_FOR_MEMORY = 137
_SIGNALS = 32
# What shells and the container's own first process say of a program that is not there or is none.
_NOT_EXECUTABLE = (126, 127)


@dataclass(frozen=True)
class ContainerSettings:
    """What every container of a task is given; read from ROOT_COMMAND_* and the servers' addresses."""

    version: str = "dev"
    images: Mapping[str, str] = field(default_factory=lambda: IMAGES)
    network: str = "bridge"
    user: str = ""
    memory: str = "2g"
    pids: int = 512
    tmp: str = "1g"
    volumes: tuple[str, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> ContainerSettings:
        """Read the settings; NotSetUpError names the one that is wrong.

        >>> given = {"ROOT_COMMAND_IMAGES": "alpha=registry/alpha:2 beta=b:1", "SERVER1_HOST": "10.0.0.1"}
        >>> settings = ContainerSettings.from_environment(given)
        >>> settings.images["alpha"], settings.hosts
        ('registry/alpha:2', {'server1': '10.0.0.1'})
        """
        own = dict(IMAGES)
        for pair in environ.get("ROOT_COMMAND_IMAGES", "").split():
            place, found, image = pair.partition("=")
            if not found:
                raise NotSetUpError(f"ROOT_COMMAND_IMAGES: {pair!r} is not root[/folder]=image")
            own[place] = image
        pids = environ.get("ROOT_COMMAND_PIDS") or str(cls.pids)
        if not pids.isdigit():
            raise NotSetUpError(f"ROOT_COMMAND_PIDS is no number: {pids!r}")
        return cls(
            version=environ.get("MLOPS_VERSION") or cls.version,
            images=own,
            network=environ.get("ROOT_COMMAND_NETWORK") or cls.network,
            # A secret or a volume that this worker can read, its tasks can read.
            user=environ.get("ROOT_COMMAND_USER") or f"{os.getuid()}:{os.getgid()}",
            memory=environ.get("ROOT_COMMAND_MEMORY") or cls.memory,
            pids=int(pids),
            tmp=environ.get("ROOT_COMMAND_TMP") or cls.tmp,
            volumes=tuple(environ.get("ROOT_COMMAND_VOLUMES", "").split()),
            hosts={
                f"server{number}": address
                for number in (1, 2, 3)
                if (address := environ.get(f"SERVER{number}_HOST"))
            },
        )

    def image(self, root: str, workdir: str) -> str:
        """Return the image of a root's folder, with the version where the setting names none.

        >>> ContainerSettings(images={"a": "own/a", "a/b": "own/b:2"}).image("a", "b/c")
        'own/b:2'
        >>> ContainerSettings(images={"a": "own/a"}).image("a", "")
        'own/a:dev'
        """
        place = f"{root}/{workdir}/"
        fitting = [known for known in self.images if place.startswith(f"{known}/")]
        if not fitting:
            raise NotSetUpError(f"no image runs {place.rstrip('/')}: name one in ROOT_COMMAND_IMAGES")
        name = self.images[max(fitting, key=len)]
        return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:{self.version}"


def container_environment(
    environ: Mapping[str, str], additions: Mapping[str, str], root: str = ""
) -> dict[str, str]:
    """Return the variables a task of `root` gets: the platform's settings, not the worker's own.

    >>> container_environment({"REDIS_HOST": "server2", "PATH": "/bin", "AIRFLOW__API__SECRET_KEY": "x"}, {})
    {'REDIS_HOST': 'server2', 'PYTHONUNBUFFERED': '1'}
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not (PRIVATE.search(name) or _OWN.search(name))
        and all(root == owner for names, owner in _OF_ONE_ROOT.items() if names.search(name))
    }
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(additions)


def connect() -> Any:
    """Return a client of the engine at DOCKER_HOST."""
    import docker  # noqa: PLC0415 - DAG files are parsed without it

    return docker.from_env(version="auto")


@dataclass
class ContainerRunner:
    """Runs commands in containers; `stop` may be called from a signal handler while one runs."""

    settings: ContainerSettings
    client: Callable[[], Any] = connect
    grace_seconds: int = 10
    _container: Any = field(default=None, init=False, repr=False)

    def run(
        self,
        *,
        root: str,
        workdir: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        additions: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> None:
        """Run `command` in `/app/<workdir>` of the root's image and give `on_line` each line of its output.

        The container is read-only but for /tmp and the volumes of the settings, without capabilities, and
        removed when it has ended. Raises NotSetUpError where image, network or setting is missing,
        CommandFailedError on an exit code other than 0 and where the engine can't be reached.
        """
        from docker.errors import APIError, DockerException, NotFound  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        image = self.settings.image(root, workdir)
        env = container_environment(environ, additions, root)
        argv = [expand(argument, env) for argument in command]
        name = " ".join(command)
        last: deque[str] = deque(maxlen=LAST_LINES)
        try:
            client = self.client()
            container = self._container = client.containers.create(
                image,
                entrypoint=argv[:1],
                command=argv[1:],
                environment=env,
                working_dir="/".join(part for part in (APP, workdir) if part),
                labels={"mlops.root-command": root},
                **self._limits(),
            )
        except NotFound as error:
            raise NotSetUpError(f"no image {image}: `make images` builds it ({error.explanation})") from None
        except (DockerException, OSError) as error:
            raise CommandFailedError(f"`{name}` of {root} was not started: {error}") from None
        try:
            container.start()
            for line in _lines(container):
                last.append(line)
                on_line(line)
            code = int(container.wait()["StatusCode"])
            if code == _KILLED_FOR_MEMORY:
                container.reload()
                if container.attrs["State"].get("OOMKilled"):
                    last.append(f"(it needed more memory than {self.settings.memory})")
        except NotFound as error:
            raise NotSetUpError(f"{image} can't be run: {error.explanation}") from None
        except APIError as error:
            # Docker's own codes for a command that is not there or can't be executed.
            if "executable file not found" in str(error) or "no such file or directory" in str(error):
                raise NotSetUpError(f"{image} has no {argv[0]}: {error.explanation}") from None
            raise CommandFailedError(f"`{name}` of {root} was not started: {error.explanation}") from None
        except (OSError, HTTPError, struct.error) as error:
            raise CommandFailedError(f"`{name}` of {root}: the engine was lost: {error}") from None
        finally:
            self._container = None
            self._remove(container)
        if code in _NOT_EXECUTABLE:
            raise NotSetUpError(f"{image} can't run {argv[0]}: {' '.join(last) or f'exit code {code}'}")
        if code != 0:
            shown = "\n".join(f"  | {line}" for line in last) or "  (it printed nothing)"
            # A signal's number is added to 128, by shells and by the container's own first process.
            how = ending(128 - code if 128 < code < 128 + _SIGNALS else code)
            raise CommandFailedError(f"`{name}` of {root} {how}; its last lines:\n{shown}")

    def stop(self) -> None:
        """End the running container: SIGTERM, and after the grace SIGKILL."""
        container = self._container
        if container is not None:
            container.stop(timeout=self.grace_seconds)

    def _limits(self) -> dict[str, Any]:
        settings = self.settings
        volumes = dict(_mount(volume) for volume in settings.volumes)
        return {
            "user": settings.user,
            "network": settings.network,
            "extra_hosts": dict(settings.hosts),
            "volumes": volumes,
            "read_only": True,
            "tmpfs": {"/tmp": f"size={settings.tmp},mode=1777,nosuid,nodev"},  # noqa: S108
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "mem_limit": settings.memory,
            "memswap_limit": settings.memory,
            "pids_limit": settings.pids,
            "init": True,
            "stdin_open": False,
            "detach": True,
        }

    def _remove(self, container: Any) -> None:
        from docker.errors import NotFound  # noqa: PLC0415

        try:
            container.remove(force=True, v=True)
        except NotFound:
            return


def _mount(volume: str) -> tuple[str, dict[str, str]]:
    """Read `name:/path[:ro]`, a volume or a folder of the engine's machine.

    >>> _mount("mlops-data:/var/lib/mlops/data:ro")
    ('mlops-data', {'bind': '/var/lib/mlops/data', 'mode': 'ro'})
    """
    parts = volume.split(":")
    if len(parts) not in (2, 3) or not all(parts) or parts[2:] not in ([], ["ro"], ["rw"]):
        raise NotSetUpError(f"ROOT_COMMAND_VOLUMES: {volume!r} is not name:/path[:ro]")
    return parts[0], {"bind": parts[1], "mode": parts[2] if len(parts) == 3 else "rw"}


def _lines(container: Any) -> Iterator[str]:
    """Yield the lines of a container until it has ended, each once, also where the connection breaks."""
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    newest, failures = b"", 0
    while True:
        try:
            seen = newest
            since = {"since": _seconds(seen)} if seen else {}
            stream = container.logs(stream=True, follow=True, timestamps=True, **since)
            for stamp, text in _stamped(stream):
                # A repeated connection begins at a whole second: what was seen is not given again.
                if stamp <= seen:
                    continue
                newest, failures = stamp, 0
                if line := cleaned(text.decode(errors="replace")):
                    yield line
        except (OSError, HTTPError, struct.error):
            failures += 1
            if failures > _RECONNECTS:
                raise
            time.sleep(min(failures, 5))
        container.reload()
        if container.status not in ("running", "created", "paused"):
            return


def _stamped(stream: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield (time, text) of each whole line of a log with time stamps; pieces are put together.

    >>> list(_stamped(iter([b"2026-01-01T00:00:00.1Z on", b"e\\n2026-01-01T00:00:00.2Z two\\n"])))
    [(b'2026-01-01T00:00:00.1', b'one'), (b'2026-01-01T00:00:00.2', b'two')]
    """
    pending = b""
    for chunk in stream:
        *lines, pending = (pending + chunk).split(b"\n")
        yield from filter(None, map(_split, lines))
    if pending and (last := _split(pending)):
        yield last


def _split(line: bytes) -> tuple[bytes, bytes] | None:
    match = _STAMPED.fullmatch(line)
    return (match[1], match[2]) if match else None


def _seconds(stamp: bytes) -> int:
    """Return the Unix second of a time stamp, rounded down."""
    import calendar  # noqa: PLC0415

    return calendar.timegm(time.strptime(stamp[:19].decode(), "%Y-%m-%dT%H:%M:%S"))
