"""The settings of a set of servers: `servers.env`, made once from the template, read by Compose and by us."""

from __future__ import annotations

import grp
import re
from collections.abc import Mapping
from pathlib import Path

from server_tools import places

_ASSIGNMENT = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$")
_OPTIONAL = re.compile(r"^#([A-Z][A-Z0-9_]*)=(.*)$")


class SettingsError(Exception):
    """A settings file is not as it must be; the message says where."""


def parse(text: str) -> dict[str, str]:
    """Return the assignments of an env file; raises SettingsError for a line that is none.

    >>> parse("# addresses\\nUI_BIND=127.0.0.1\\n\\n#API_MEMORY=1g\\n")
    {'UI_BIND': '127.0.0.1'}
    """
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _ASSIGNMENT.match(line)
        if match is None:
            raise SettingsError(f"line {number} is no NAME=value: {line}")
        found[match[1]] = match[2].strip()
    return found


def documented(template: str) -> set[str]:
    """Return every setting that the template names, also those that are only a comment with their default."""
    lines = template.splitlines()
    return {match[1] for line in lines if (match := _ASSIGNMENT.match(line) or _OPTIONAL.match(line))}


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each `@name@` of the template by its value; raises SettingsError for an unknown name."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise SettingsError(f"the template names @{match[1]}@, which has no value")
        return values[match[1]]

    return re.sub(r"@([a-z_]+)@", value, template)


def create(path: Path, uid: int, gid: int) -> bool:
    """Write the settings file if there is none; return whether it was written."""
    if path.exists():
        return False
    values = {
        "uid": str(uid),
        "gid": str(gid),
        "servers_dir": str(path.parent),
        "docker_gid": str(_docker_group(gid)),
    }
    path.write_text(fill(places.SETTINGS_TEMPLATE.read_text(encoding="utf-8"), values), encoding="utf-8")
    return True


def read(path: Path) -> dict[str, str]:
    """Return the settings of the file at `path`; raises SettingsError where there is none."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"there is no {path}: run `make secrets`") from None
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _docker_group(fallback: int) -> int:
    try:
        return grp.getgrnam("docker").gr_gid
    except KeyError:
        return fallback
