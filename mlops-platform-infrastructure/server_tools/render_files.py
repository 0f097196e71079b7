"""Rendered files read back: what form they have, what was left over in them, which tool judges them."""

from __future__ import annotations

import configparser
import ipaddress
import json
import re
from collections.abc import Callable
from pathlib import Path

import yaml

from server_tools.render_templates import File

# Prometheus' own templates use the braces, and only there they may stand.
_OWN_BRACES = re.compile(r"\{\{ \$(labels\.[a-z_]+|value( \| [^{}]+)?) \}\}")
_LEFTOVERS = re.compile(
    r"\{\{|\}\}|\{%|%\}|\{#|\bundefined\b|<jinja2|\b(?:TODO|FIXME|CHANGEME|changeme|REPLACE_ME)\b",
    re.IGNORECASE,
)
_NAME_USED = re.compile(r"\$\{([A-Z][A-Z0-9_]*)|^#?\s*([A-Z][A-Z0-9_]*)=", re.MULTILINE)
_POSTGRES_LINE = re.compile(r"[a-z_][a-z_.]* = ('[^']*'|[A-Za-z0-9.]+)")
_REDIS_WORD = re.compile(r"[a-z][a-z0-9-]*")


def names_used(text: str) -> set[str]:
    """Return the settings that a Compose file takes or a file of settings names.

    >>> sorted(names_used("image: ${REDIS_IMAGE:?x}\\n#UI_BIND=127.0.0.1\\n"))
    ['REDIS_IMAGE', 'UI_BIND']
    """
    return {first or second for first, second in _NAME_USED.findall(text)}


def leftovers(file: File, text: str) -> list[tuple[int, str]]:
    """Return the lines that still hold what rendering should have replaced."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        rest = _OWN_BRACES.sub("", line) if file.check == "promtool-rules" else line
        # Flow maps inside flow maps end in two braces, which is YAML and nothing left over.
        if file.form in {"yaml", "json"}:
            rest = rest.replace("}}", "")
        match = _LEFTOVERS.search(rest)
        if match:
            found.append((number, match[0]))
    return found


def problem(form: str, text: str) -> str:
    """Return why `text` can't be read as what it should be, or nothing."""
    if not text.strip():
        return "is empty"
    try:
        _READERS[form](text)
    except (ValueError, yaml.YAMLError, configparser.Error) as error:
        return f"is no {form} file: {error}"
    return ""


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key that stands twice: the first one would be lost silently."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[object, object]:
    seen: dict[object, object] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise ValueError(f"the key {key!r} stands twice (line {key_node.start_mark.line + 1})")
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _yaml(text: str) -> None:
    if not isinstance(yaml.load(text, Loader=_UniqueKeys), dict):  # noqa: S506 - a safe loader
        raise ValueError("holds no settings")


def _ini(text: str) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    if not parser.sections():
        raise ValueError("holds no sections")


def _redis(text: str) -> None:
    seen = set()
    for number, line in _lines(text):
        words = line.split()
        if len(words) < 2 or not _REDIS_WORD.fullmatch(words[0]):
            raise ValueError(f"line {number} is no directive with a value")
        if words[0] in seen:
            raise ValueError(f"line {number}: {words[0]} stands twice")
        seen.add(words[0])


def _postgresql(text: str) -> None:
    seen = set()
    for number, line in _lines(text):
        if not _POSTGRES_LINE.fullmatch(line):
            raise ValueError(f"line {number} is no `name = value`")
        name = line.split(" = ", maxsplit=1)[0]
        if name in seen:
            raise ValueError(f"line {number}: {name} stands twice")
        seen.add(name)


def _pg_hba(text: str) -> None:
    lines = _lines(text)
    for number, line in lines:
        words = line.split()
        if len(words) != (4 if words[0] == "local" else 5):
            raise ValueError(f"line {number} has {len(words)} words")
        if words[0] not in {"local", "host"} or words[-1] not in {"scram-sha-256", "reject"}:
            raise ValueError(f"line {number}: {words[0]} with {words[-1]} is not allowed here")
        if words[0] == "host" and words[3] not in {"samenet", "all"}:
            ipaddress.ip_network(words[3])
    if not lines or lines[-1][1].split() != ["host", "all", "all", "all", "reject"]:
        raise ValueError("the last line must reject everybody else")


def _alloy(text: str) -> None:
    depth = 0
    for number, line in enumerate(text.splitlines(), start=1):
        code = re.sub(r'"(\\.|[^"\\])*"', "", line).split("//")[0]
        depth += code.count("{") - code.count("}")
        if depth < 0 or '"' in code:
            raise ValueError(f"line {number}: a brace or a quotation mark without its other half")
    if depth:
        raise ValueError("a block is not closed")


def _lines(text: str) -> list[tuple[int, str]]:
    return [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


_READERS: dict[str, Callable[[str], object]] = {
    "ini": _ini,
    "yaml": _yaml,
    "json": json.loads,
    "alloy": _alloy,
    "redis": _redis,
    "postgresql": _postgresql,
    "pg_hba": _pg_hba,
}


def tool(check: str, path: Path) -> list[str] | None:
    """Return the command that judges the file at `path`, None where there is none."""
    commands = {
        "promtool-config": ["promtool", "check", "config", str(path)],
        "promtool-rules": ["promtool", "check", "rules", str(path)],
        "amtool": ["amtool", "check-config", str(path)],
    }
    return commands.get(check)
