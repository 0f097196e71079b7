"""`python -m server_tools render [--check]`: the servers' configuration files, from templates and settings.

Rendering is strict and deterministic: a name that nobody declared is an error, and the same settings give the
same bytes. `--check` writes nothing and exits 1 with a list of findings: files that are missing, stale or
left over, settings that nobody uses or knows, expressions that were never filled in, and what the services'
own tools (promtool, amtool) find where they are installed.
"""

from __future__ import annotations

import argparse
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from server_tools import places, render_files, render_templates
from server_tools.render_templates import Manifest, RenderError, Setting
from server_tools.secrets import owner

TEMPLATES = places.ROOT / "platform_config_templates"
FILE_MODE = 0o644  # no file holds a secret
FOLDER_MODE = 0o755


def config_dir() -> Path:
    """Return the folder of the rendered files; everything in it is written by this command."""
    return places.servers_dir() / "config"


def compose_settings(folder: Path) -> set[str]:
    """Return the names that Compose files below `folder` and the pinned versions use."""
    names: set[str] = set()
    for path in sorted([*folder.rglob("*.yml"), *folder.rglob("*.env"), *folder.rglob("*.template")]):
        names |= render_files.names_used(path.read_text(encoding="utf-8"))
    return names


def findings_of_settings(manifest: Manifest, used: set[str]) -> list[str]:
    """Return the settings that the manifest declares and no template uses."""
    return [
        f"manifest.yml declares {name}, which no template uses"
        for name in manifest.settings
        if name not in used
    ]


def unknown_settings(manifest: Manifest, given: Mapping[str, str], elsewhere: set[str]) -> list[str]:
    """Return lines of servers.env that nobody reads: a misspelt name changes nothing, silently."""
    return [
        f"servers.env sets {name}, which no template and no Compose file uses"
        for name in given
        if name not in manifest.settings and name not in elsewhere
    ]


def findings_of_texts(manifest: Manifest, texts: Mapping[str, str]) -> list[str]:
    """Return rendered files that can't be read back, or hold an expression that was not filled in."""
    found = []
    for file in manifest.files:
        text = texts[file.output]
        problem = render_files.problem(file.form, text)
        if problem:
            found.append(f"{file.output}: {problem}")
        found += [
            f"{file.output}, line {line}: left over: {what}"
            for line, what in render_files.leftovers(file, text)
        ]
    return found


def findings_of_folder(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Return what in `folder` differs from the texts: missing, stale, left over, of another mode."""
    found = []
    for name, text in texts.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name}: not rendered")
        elif path.read_text(encoding="utf-8") != text:
            found.append(f"{name}: not what the templates and settings give now")
        elif stat.S_IMODE(path.stat().st_mode) != FILE_MODE:
            found.append(f"{name}: mode {stat.S_IMODE(path.stat().st_mode):04o} instead of {FILE_MODE:04o}")
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if not path.is_dir() and path.relative_to(folder).as_posix() not in texts:
            found.append(f"{path.relative_to(folder).as_posix()}: left over, no template makes it")
    return found


def findings_of_tools(manifest: Manifest, texts: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return what the services' own tools refuse, and which tools are not installed here."""
    found, absent = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in texts.items():
            path = Path(scratch, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for file in manifest.files:
            command = render_files.tool(file.check, Path(scratch, file.output))
            if command is None:
                continue
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            except FileNotFoundError:
                absent.append(f"{file.output}: {command[0]} is not installed, so it did not look")
                continue
            if done.returncode:
                found.append(f"{file.output}: {command[0]}: {(done.stdout + done.stderr).strip()[-400:]}")
    return found, absent


def write(folder: Path, texts: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Bring `folder` to the texts; return the files that were written and those that were removed."""
    uid, gid = owner()
    written = []
    for name, text in texts.items():
        path = folder / name
        _folder(path.parent, folder)
        fresh = path.is_file() and path.read_text(encoding="utf-8") == text
        if fresh and stat.S_IMODE(path.stat().st_mode) == FILE_MODE:
            continue
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(FILE_MODE)
        os.chown(temporary, uid, gid)
        os.replace(temporary, path)
        written.append(name)
    removed = []
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in texts:
            path.unlink()
            removed.append(path.relative_to(folder).as_posix())
    return written, removed


def _folder(path: Path, top: Path) -> None:
    """Create `path` below `top`; containers of any user must be able to enter it."""
    path.mkdir(parents=True, exist_ok=True)
    for each in (path, *path.parents):
        if not each.is_relative_to(top):
            return
        each.chmod(FOLDER_MODE)


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="server_tools render", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 with what is not right")
    parser.add_argument("--list", action="store_true", help="the settings, their values, and who gave them")
    options = parser.parse_args(arguments[1:])
    try:
        manifest = render_templates.read_manifest(TEMPLATES / "manifest.yml")
        given = render_templates.read_settings(places.settings_file())
        values = render_templates.values(manifest, given)
        if options.list:
            _list(manifest.settings, values, given)
            return 0
        texts, used = render_templates.render(TEMPLATES, manifest, values)
    except RenderError as error:
        print(f"server_tools render: {error}", file=sys.stderr)
        return 1
    findings = render_templates.strays(TEMPLATES, manifest)
    findings += findings_of_settings(manifest, used)
    unknown = unknown_settings(manifest, given, compose_settings(places.SETUPS))
    findings += findings_of_texts(manifest, texts)
    refused, absent = findings_of_tools(manifest, texts)
    findings += refused
    if options.check:
        findings += [*unknown, *findings_of_folder(config_dir(), texts)]
        unknown = []
    for line in [*absent, *unknown]:
        print(f"note: {line}")
    for line in findings:
        print(f"finding: {line}", file=sys.stderr)
    if findings:
        print(f"{len(findings)} findings; nothing was written", file=sys.stderr)
        return 1
    if options.check:
        print(f"{config_dir()}: {len(texts)} files are what templates and settings give")
        return 0
    written, removed = write(config_dir(), texts)
    for name in removed:
        print(f"removed {name}: no template makes it")
    print(f"{config_dir()}: {len(written)} written, {len(texts) - len(written)} kept, {len(removed)} removed")
    return 0


def _list(settings: Mapping[str, Setting], values: Mapping[str, object], given: Mapping[str, str]) -> None:
    for name, setting in settings.items():
        source = "servers.env" if name in given else "default"
        value = values[name]
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        print(f"{name}={text}  # {source}: {setting.about}")
