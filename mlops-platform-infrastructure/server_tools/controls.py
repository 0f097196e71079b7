"""The controls that every service of every stack must have: one entry a control, over Compose's model.

A control names what is wrong with a service, a network or a volume, or nothing. `remove` breaks exactly that
control in a copy of a service that has it: the mutation test takes each control away from each service and
expects a finding.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Service = dict[str, Any]
Model = Mapping[str, Any]

OWN_IMAGE = re.compile(r"mlops/[a-z-]+:[A-Za-z0-9_.-]+")
PINNED_IMAGE = re.compile(
    r"[a-z0-9./_-]+:(?!latest$)[A-Za-z0-9_.-]*[0-9][A-Za-z0-9_.-]*(@sha256:[0-9a-f]{64})?"
)
SECRET_NAME = re.compile(
    r"PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_KEY|PRIVATE_KEY|FERNET|CREDENTIAL", re.I
)
SOCKET = re.compile(r"docker\.sock$")
# Networks by purpose: nothing leaves these, so what is only for neighbours is reached by neighbours alone.
INTERNAL_NETWORKS = frozenset(
    {
        "storage",
        "database",
        "stream",
        "orchestration",
        "docker-api",
        "serving",
        "monitoring",
        "logs",
    }
)
# Through these a service is published, and reaches the other servers.
OPEN_NETWORKS = frozenset({"edge", "tasks"})
NETWORKS = INTERNAL_NETWORKS | OPEN_NETWORKS
LARGEST_LOG_FILES = 10
MOST_PIDS = 2048
SHORTEST_RETRIES = 2


@dataclass(frozen=True)
class Control:
    """One rule: what it wants, how it is judged, and how it is taken away from a service that keeps it."""

    name: str
    wants: str
    check: Callable[[Service, Model], str]
    remove: Callable[[Service], None]
    applies: Callable[[Service], bool] = lambda _service: True
    removable: Callable[[Service], bool] = lambda _service: True


def is_job(service: Service) -> bool:
    """Whether a service is one that ends."""
    return str(service.get("restart", "no")).split(":")[0] in {"no", "on-failure"}


def memory_bytes(service: Service) -> int:
    """Return the memory limit in bytes, 0 where there is none."""
    return int(service.get("mem_limit") or 0)


def _image(service: Service, _model: Model) -> str:
    image = str(service.get("image", ""))
    if service.get("build"):
        return "builds its image where it runs"
    if OWN_IMAGE.fullmatch(image) and not image.endswith(":latest"):
        return ""
    return "" if PINNED_IMAGE.fullmatch(image) else f"image {image or 'missing'} is not pinned"


def _user(service: Service, _model: Model) -> str:
    user = str(service.get("user", ""))
    if not user:
        return "runs as the image's user"
    name, _, group = user.partition(":")
    if not (name.isdigit() and group.isdigit()):
        return f"user {user} is no pair of numbers"
    return "runs as root" if "0" in {name, group} else ""


def _capabilities(service: Service, _model: Model) -> str:
    return "" if "ALL" in (service.get("cap_drop") or []) else "keeps the default capabilities"


def _added(service: Service, _model: Model) -> str:
    added = service.get("cap_add") or []
    return f"is given {', '.join(added)}" if added else ""


def _privileges(service: Service, _model: Model) -> str:
    options = service.get("security_opt") or []
    if any("unconfined" in option for option in options):
        return "turns a confinement of the engine off"
    return "" if "no-new-privileges:true" in options else "may gain privileges"


def _isolated(service: Service, _model: Model) -> str:
    if service.get("privileged"):
        return "is privileged"
    for key in ("pid", "ipc", "uts", "userns_mode", "cgroup"):
        if str(service.get(key, "")).startswith(("host", "container:", "service:")):
            return f"shares {key} with {service[key]}"
    if service.get("devices") or service.get("device_cgroup_rules"):
        return "is given devices"
    return ""


def _published(service: Service, _model: Model) -> str:
    for port in service.get("ports") or []:
        address = port.get("host_ip", "")
        try:
            unspecified = ipaddress.ip_address(address).is_unspecified
        except ValueError:
            return f"publishes {port.get('target')} on {address or 'every address'}"
        if unspecified:
            return f"publishes {port.get('target')} on every address"
    return ""


def _healthcheck(service: Service, _model: Model) -> str:
    check = service.get("healthcheck") or {}
    test = check.get("test") or []
    if not test or test[0] == "NONE" or check.get("disable"):
        return "has no health check"
    missing = [key for key in ("interval", "timeout", "retries") if not check.get(key)]
    if missing:
        return f"has a health check without {', '.join(missing)}"
    return "" if int(check["retries"]) >= SHORTEST_RETRIES else "is unhealthy after one failed check"


def _memory(service: Service, _model: Model) -> str:
    return "" if memory_bytes(service) > 0 else "has no memory limit"


def _pids(service: Service, _model: Model) -> str:
    limit = int(service.get("pids_limit") or 0)
    return "" if 0 < limit <= MOST_PIDS else "has no limit of processes"


def _logs(service: Service, _model: Model) -> str:
    logging = service.get("logging") or {}
    options = logging.get("options") or {}
    if logging.get("driver") != "json-file" or not options.get("max-size") or not options.get("max-file"):
        return "its log grows without end"
    return "" if int(options["max-file"]) <= LARGEST_LOG_FILES else "keeps too many log files"


def _restart(service: Service, _model: Model) -> str:
    return "" if service.get("restart") else "doesn't say what happens when it ends"


def _read_only(service: Service, _model: Model) -> str:
    return "" if service.get("read_only") else "writes into its image"


def _mounts(service: Service, _model: Model) -> str:
    for mount in service.get("volumes") or []:
        if mount["type"] == "bind" and not mount.get("read_only"):
            return f"may write {mount['source']} of the host"
        if mount["type"] == "volume" and not mount.get("source"):
            return f"keeps {mount['target']} in a volume without a name"
    return ""


def _socket(service: Service, _model: Model) -> str:
    mounted = any(SOCKET.search(str(mount.get("source", ""))) for mount in service.get("volumes") or [])
    return "holds the socket of the Docker Engine" if mounted else ""


def _temporary(service: Service, _model: Model) -> str:
    for entry in service.get("tmpfs") or []:
        options = entry.partition(":")[2].split(",")
        if not any(option.startswith("size=") for option in options) or not {"nosuid", "nodev"} <= set(
            options
        ):
            return f"{entry.partition(':')[0]} in memory without size, nosuid or nodev"
    return ""


def _plain_secrets(service: Service, _model: Model) -> str:
    for name, value in (service.get("environment") or {}).items():
        if (
            SECRET_NAME.search(name)
            and value
            and not name.endswith(("_FILE", "__FILE"))
            and name not in _NO_SECRETS
        ):
            return f"has {name} in its environment"
    return ""


# Names that only look like a secret's.
_NO_SECRETS = frozenset({"JENKINS_BUILD_HOST_KEY"})


def _secret_files(service: Service, model: Model) -> str:
    known = model.get("secrets") or {}
    for secret in service.get("secrets") or []:
        declared = known.get(secret["source"])
        if not declared or not declared.get("file"):
            return f"secret {secret['source']} is no file"
    return ""


def _networks(service: Service, _model: Model) -> str:
    if service.get("network_mode"):
        return "" if service["network_mode"] == "none" else f"network mode {service['network_mode']}"
    names = set(service.get("networks") or {})
    if not names:
        return "names no network"
    unknown = names - NETWORKS
    return f"is on {', '.join(sorted(unknown))}, which has no purpose" if unknown else ""


def _purpose(service: Service, model: Model) -> str:
    declared = model.get("networks") or {}
    for name in service.get("networks") or {}:
        internal = bool((declared.get(name) or {}).get("internal"))
        if name in INTERNAL_NETWORKS and not internal:
            return f"its network {name} is open to the outside"
    return ""


def _published_needs_edge(service: Service, _model: Model) -> str:
    names = set(service.get("networks") or {})
    if service.get("ports") and not names & OPEN_NETWORKS:
        return "publishes a port that no network lets through"
    return ""


def _order(service: Service, model: Model) -> str:
    services = model.get("services") or {}
    for name, how in (service.get("depends_on") or {}).items():
        needed = services.get(name)
        if needed is None:
            continue
        wanted = "service_completed_successfully" if is_job(needed) else "service_healthy"
        if how.get("condition") != wanted:
            return f"doesn't wait until {name} is {'done' if is_job(needed) else 'healthy'}"
    return ""


def _init(service: Service, _model: Model) -> str:
    return "" if service.get("init") else "has no first process that reaps others"


def _volumes_have_owners(service: Service, model: Model) -> str:
    """A volume that is written belongs to whom the job before has given it."""
    services = model.get("services") or {}
    mine = {
        m["source"] for m in service.get("volumes") or [] if m["type"] == "volume" and not m.get("read_only")
    }
    owned: set[str] = set()
    for name in service.get("depends_on") or {}:
        if name.endswith("-volumes") and name in services:
            owned |= {m["source"] for m in services[name].get("volumes") or [] if m["type"] == "volume"}
    missing = sorted(mine - owned)
    return f"writes {', '.join(missing)}, which no job before gave to its user" if missing else ""


def _no_copy(service: Service, _model: Model) -> str:
    for mount in service.get("volumes") or []:
        if mount["type"] == "volume" and not (mount.get("volume") or {}).get("nocopy"):
            return f"a new {mount['source']} would take owner and files of the image"
    return ""


def _drop(key: str) -> Callable[[Service], None]:
    def remove(service: Service) -> None:
        service.pop(key, None)

    return remove


def _set(key: str, value: Any) -> Callable[[Service], None]:
    def remove(service: Service) -> None:
        service[key] = value

    return remove


def _without_address(service: Service) -> None:
    service["ports"][0].pop("host_ip", None)


def _forget_order(service: Service) -> None:
    for how in service["depends_on"].values():
        how["condition"] = "service_started"


def _add_to(key: str, value: Any) -> Callable[[Service], None]:
    def remove(service: Service) -> None:
        service[key] = [*(service.get(key) or []), value]

    return remove


def _secret_in_environment(service: Service) -> None:
    service["environment"] = {**(service.get("environment") or {}), "DATABASE_PASSWORD": "hunter2"}


def _writable_mount(service: Service) -> None:
    next(mount for mount in service["volumes"] if mount["type"] == "bind")["read_only"] = False


def _has_bind(service: Service) -> bool:
    return any(mount["type"] == "bind" for mount in service.get("volumes") or [])


def _has_volume(service: Service) -> bool:
    return any(mount["type"] == "volume" for mount in service.get("volumes") or [])


def _copying(service: Service) -> None:
    next(mount for mount in service["volumes"] if mount["type"] == "volume").pop("volume", None)


def _bare_tmpfs(service: Service) -> None:
    service["tmpfs"] = [entry.partition(":")[0] for entry in service["tmpfs"]]


def _unowned(service: Service) -> None:
    service["depends_on"] = {
        name: how for name, how in service["depends_on"].items() if not name.endswith("-volumes")
    }


def _has(key: str) -> Callable[[Service], bool]:
    return lambda service: bool(service.get(key))


def _floating(service: Service) -> None:
    service["image"] = str(service["image"]).rpartition(":")[0] + ":latest"


def _runs_on(service: Service) -> bool:
    return not is_job(service)


def _is_no_owner(service: Service) -> bool:
    return service.get("network_mode") != "none"


def _owns_volumes(service: Service) -> bool:
    return any(name.endswith("-volumes") for name in service.get("depends_on") or {}) and _has_volume(service)


CONTROLS: tuple[Control, ...] = (
    Control("pinned-image", "an image with a version", _image, _floating),
    Control("no-root", "a user by number that is not root", _user, _drop("user")),
    Control("no-capabilities", "all capabilities dropped", _capabilities, _drop("cap_drop")),
    Control("no-added-capability", "no capability added", _added, _set("cap_add", ["SYS_ADMIN"])),
    Control("no-new-privileges", "no way to gain privileges", _privileges, _drop("security_opt")),
    Control("isolated", "namespaces and devices of its own", _isolated, _set("privileged", True)),
    Control(
        "bound-address", "ports on named addresses", _published, _without_address, removable=_has("ports")
    ),
    Control("health-check", "a health check", _healthcheck, _drop("healthcheck"), _runs_on),
    Control("memory-limit", "a memory limit", _memory, _drop("mem_limit")),
    Control("process-limit", "a limit of processes", _pids, _drop("pids_limit")),
    Control("log-rotation", "a log that is rotated", _logs, _drop("logging")),
    Control("restart", "a restart policy", _restart, _drop("restart")),
    Control("read-only", "a read-only file system", _read_only, _set("read_only", False)),
    Control("mounts", "nothing of the host that it may write", _mounts, _writable_mount, removable=_has_bind),
    Control(
        "no-engine-socket",
        "no socket of the engine",
        _socket,
        _add_to("volumes", {"type": "bind", "source": "/run/docker.sock", "target": "/s", "read_only": True}),
    ),
    Control(
        "temporary-files", "temporary files with a limit", _temporary, _bare_tmpfs, removable=_has("tmpfs")
    ),
    Control("no-plain-secret", "secrets as files", _plain_secrets, _secret_in_environment),
    Control(
        "secret-files",
        "secrets that come from files",
        _secret_files,
        _add_to("secrets", {"source": "made_up", "target": "made_up"}),
    ),
    Control("networks", "networks by purpose", _networks, _set("network_mode", "host")),
    Control(
        "internal-networks",
        "neighbours alone on internal networks",
        _purpose,
        _set("networks", {"made-up": None}),
        removable=lambda _service: False,  # policy.model_mutations opens them
    ),
    Control(
        "published-network",
        "an open network for a port that is published",
        _published_needs_edge,
        _set("networks", {"database": None}),
        removable=_has("ports"),
    ),
    Control(
        "order",
        "what it needs healthy, or done, before it starts",
        _order,
        _forget_order,
        removable=_has("depends_on"),
    ),
    Control("init", "a first process that reaps others", _init, _drop("init"), _runs_on),
    Control(
        "volume-owner",
        "volumes that belong to its user",
        _volumes_have_owners,
        _unowned,
        _is_no_owner,
        _owns_volumes,
    ),
    Control("no-copy", "volumes that take nothing from images", _no_copy, _copying, removable=_has_volume),
)
