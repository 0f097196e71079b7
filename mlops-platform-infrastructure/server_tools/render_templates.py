"""The manifest, the settings and the strict rendering of `platform_config_templates`."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml

FORMS = ("ini", "yaml", "json", "alloy", "redis", "postgresql", "pg_hba")
CHECKS = ("", "promtool-config", "promtool-rules", "amtool")
NO_TEMPLATES = {"manifest.yml", "README.md"}
_COMMENT = {"alloy": "//", "json": ""}
_ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")
_REQUIRED = object()


class RenderError(Exception):
    """Templates or settings can't be used; the message says which and why."""


@dataclass(frozen=True)
class Setting:
    """A value that templates may use; `default` also gives its type."""

    default: Any
    about: str
    kind: str

    @property
    def required(self) -> bool:
        """Tell whether servers.env must give it."""
        return self.default is _REQUIRED


@dataclass(frozen=True)
class File:
    """A template and the file it becomes."""

    template: str
    output: str
    form: str
    check: str = ""


@dataclass(frozen=True)
class Manifest:
    """All files and all settings."""

    files: tuple[File, ...]
    settings: Mapping[str, Setting]


def read_manifest(path: Path) -> Manifest:
    """Read the manifest; raises RenderError for an entry that is incomplete, doubled or unknown."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        files = tuple(File(**entry) for entry in content["files"])
        settings = {
            name: Setting(
                entry.get("default", _REQUIRED), entry["about"], entry.get("kind") or _kind(entry["default"])
            )
            for name, entry in content["settings"].items()
        }
    except (KeyError, TypeError) as error:
        raise RenderError(f"{path}: {error}") from None
    for file in files:
        if file.form not in FORMS or file.check not in CHECKS:
            raise RenderError(
                f"{path}: {file.output} has the form {file.form!r} and the check {file.check!r}"
            )
        if Path(file.output).is_absolute() or ".." in Path(file.output).parts:
            raise RenderError(f"{path}: {file.output} leads out of the folder of rendered files")
    outputs = [file.output for file in files]
    if len(set(outputs)) != len(outputs):
        raise RenderError(f"{path}: two templates make one file: {sorted(outputs)}")
    return Manifest(files, settings)


def _kind(default: Any) -> str:
    for kind, type_ in (("switch", bool), ("number", int), ("list", list), ("text", str)):
        if isinstance(default, type_):
            return kind
    raise TypeError(f"a default can't be {default!r}")


def read_settings(path: Path) -> dict[str, str]:
    """Return the lines of servers.env; raises RenderError where it is missing or a line is no KEY=value."""
    if not path.is_file():
        raise RenderError(f"{path} is missing: make secrets writes it")
    settings: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match is None:
            raise RenderError(f"{path}, line {number}: no KEY=value")
        try:
            settings[match[1]] = " ".join(shlex.split(match[2], comments=False))
        except ValueError as error:
            raise RenderError(f"{path}, line {number}: {error}") from None
    return settings


def values(manifest: Manifest, given: Mapping[str, str]) -> dict[str, Any]:
    """Return each setting's value, of its type; raises RenderError for one that is missing or wrong."""
    result: dict[str, Any] = {}
    for name, setting in manifest.settings.items():
        if name in given:
            result[name] = _typed(name, setting, given[name])
        elif setting.required:
            raise RenderError(f"servers.env does not set {name} ({setting.about})")
        else:
            result[name] = setting.default
    return result


def _typed(name: str, setting: Setting, text: str) -> Any:
    if any(character in text for character in "\"'\\\n{}"):
        raise RenderError(
            f"{name} is {text!r}: quotes, backslashes and braces would break the files it goes into"
        )
    if setting.kind == "switch":
        if text.lower() not in {"true", "false"}:
            raise RenderError(f"{name} is {text!r}: true or false")
        return text.lower() == "true"
    if setting.kind == "number":
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise RenderError(f"{name} is {text!r}: a whole number is needed")
        return int(text)
    if setting.kind == "list":
        return text.split()
    if not text:
        raise RenderError(f"{name} is empty")
    if setting.kind == "address":
        cidr(text)
    return text


def cidr(text: str) -> str:
    """Return an address as a network of one; a network stays. Raises RenderError for a name.

    >>> cidr("10.0.0.1"), cidr("fd00::1"), cidr("10.0.0.0/8")
    ('10.0.0.1/32', 'fd00::1/128', '10.0.0.0/8')
    """
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise RenderError(f"{text!r} is no IP address: rules on addresses can't hang on a name") from None


def environment(folder: Path) -> jinja2.Environment:
    """Return the strict environment of the templates."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - configuration files, no HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["cidr"] = cidr
    # Jinja's own escapes what HTML would trip over.
    made.policies["json.dumps_kwargs"] = {"sort_keys": True, "ensure_ascii": False}
    return made


def render(folder: Path, manifest: Manifest, known: Mapping[str, Any]) -> tuple[dict[str, str], set[str]]:
    """Return the text of each output, and the names of the settings that were used.

    Raises RenderError for a template that is missing, has an error, or uses a name that is not declared.
    """
    made = environment(folder)
    texts: dict[str, str] = {}
    used: set[str] = set()
    for file in manifest.files:
        try:
            source = (folder / file.template).read_text(encoding="utf-8")
            names = jinja2.meta.find_undeclared_variables(made.parse(source))
            unknown = sorted(names - set(known))
            if unknown:
                raise RenderError(
                    f"{file.template} uses {', '.join(unknown)}, which manifest.yml does not declare"
                )
            used |= names
            body = made.get_template(file.template).render(dict(known))
        except (OSError, jinja2.TemplateError, TypeError) as error:
            raise RenderError(f"{file.template}: {error}") from None
        mark = _COMMENT.get(file.form, "#")
        notice = f"{mark} Rendered from platform_config_templates/{file.template}: changes here are lost.\n"
        texts[file.output] = (notice if mark else "") + body
    return texts, used


def strays(folder: Path, manifest: Manifest) -> list[str]:
    """Return files beside the templates that the manifest does not name."""
    named = {file.template for file in manifest.files} | NO_TEMPLATES
    return [
        f"{path.relative_to(folder).as_posix()} is in no entry of manifest.yml"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in named
    ]
