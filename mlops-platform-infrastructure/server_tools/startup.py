"""What `up` decides, without a Docker Engine: which services are left out, which are ready."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Service = Mapping[str, Any]


class UnknownServiceError(Exception):
    """A service that is to be left out exists on no server."""


@dataclass(frozen=True)
class Choice:
    """The services that are started, and those that are not with the reason of each."""

    started: tuple[str, ...]
    left_out: Mapping[str, str]


def read_elsewhere(server: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Return what a server leaves to server 3 where both are one machine, with the reason.

    >>> one, two = {"SERVER1_HOST": "10.0.0.1", "SERVER3_HOST": "10.0.0.1"}, {"SERVER1_HOST": "10.0.0.1"}
    >>> read_elsewhere("1", one), read_elsewhere("3", one), read_elsewhere("1", two)
    ({'filebeat': "server 3's reads the logs of this machine"}, {}, {})
    """
    if server == "3" or settings.get(f"SERVER{server}_HOST") != settings.get("SERVER3_HOST"):
        return {}
    return {"filebeat": "server 3's reads the logs of this machine"}


def choose(
    services: Mapping[str, Service], without: Collection[str], elsewhere: Mapping[str, str] | None = None
) -> Choice:
    """Leave out the services named in `without`, what can't start without them, and jobs that only they need.

    `elsewhere` are further services with the reason of each.

    >>> model = {"db": {}, "app": {"depends_on": {"db": {"required": True}}}, "page": {}}
    >>> choose(model, ["db"])
    Choice(started=('page',), left_out={'db': 'asked for', 'app': 'needs db'})
    """
    left_out = {name: why for name, why in (elsewhere or {}).items() if name in services}
    left_out |= {name: "asked for" for name in services if name in without}
    changed = True
    while changed:
        changed = False
        for name, service in services.items():
            missing = next((need for need in needs(service) if need in left_out), None)
            if missing is not None and name not in left_out:
                left_out[name] = f"needs {missing}"
                changed = True
    for name, service in services.items():
        users = [user for user, other in services.items() if name in needs(other)]
        if is_job(service) and users and name not in left_out and all(user in left_out for user in users):
            left_out[name] = f"only {', '.join(users)} needs it"
    return Choice(tuple(name for name in services if name not in left_out), left_out)


def needs(service: Service) -> list[str]:
    """Return the services that must stand before this one."""
    depends = service.get("depends_on") or {}
    return [name for name, how in depends.items() if how.get("required", True)]


def check_names(without: Iterable[str], known: Collection[str]) -> None:
    """Raise UnknownServiceError for a name that no service has: a typing error must not go unnoticed."""
    unknown = [name for name in without if name not in known]
    if unknown:
        raise UnknownServiceError(
            f"no service is called {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )


def is_job(service: Service) -> bool:
    """Whether a service is one that ends: its container is not restarted after success."""
    return str(service.get("restart", "no")).split(":")[0] in {"no", "on-failure"}


def images(services: Mapping[str, Service], names: Iterable[str]) -> dict[str, list[str]]:
    """Return the images that the named services run, each with its services."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(services[name]["image"], []).append(name)
    return found


@dataclass(frozen=True)
class State:
    """What the Engine says of a service's container."""

    status: str
    health: str = ""
    exit_code: int = 0
    started_at: str = ""

    def ready(self, job: bool) -> bool:
        """Whether it does what it is there for: a job has ended well, a server is healthy."""
        if job:
            return self.status == "exited" and self.exit_code == 0
        return self.status == "running" and self.health in {"healthy", ""}

    def failed(self, job: bool) -> bool:
        """Whether waiting can't help any more."""
        if job:  # between two attempts it is "restarting"
            return self.status in {"exited", "dead"} and self.exit_code != 0
        return self.status == "dead"

    def describe(self) -> str:
        """Return it in a few words."""
        if self.status == "exited":
            return f"exited with {self.exit_code}"
        return f"{self.status}, {self.health}" if self.health else self.status
