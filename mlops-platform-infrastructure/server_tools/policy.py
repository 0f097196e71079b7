"""`python -m server_tools policy [--mutate]`: every stack and server as Compose resolves it, and controls.

Exit 0: no finding. An exception stands in docker_compose_setups/policy_waivers.yml with its reason; one that
excuses nothing is a finding itself. `--mutate` takes each control away from each service of a copy, and lines
out of copies of the Compose files, and says how many of these the policy noticed: all, or exit 1.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from server_tools import places, server_settings
from server_tools.compose import ComposeError, program
from server_tools.controls import CONTROLS, INTERNAL_NETWORKS

WAIVERS = "policy_waivers.yml"
Model = dict[str, Any]
# What a set of servers would say. No value of an existing set takes part: the verdict is the same everywhere.
SAMPLE = {"uid": "10001", "gid": "10001", "servers_dir": "/var/lib/mlops/servers", "docker_gid": "999"}


class PolicyError(Exception):
    """The files can't be judged; the message says why."""


@dataclass(frozen=True)
class Finding:
    """What is wrong, where."""

    model: str
    service: str
    control: str
    text: str

    def __str__(self) -> str:
        return f"{self.model}: {self.service}: {self.text} [{self.control}]"


@dataclass(frozen=True)
class Waiver:
    """Services that may do without a control, by name or pattern, and why."""

    control: str
    services: tuple[str, ...]
    reason: str


@dataclass
class Verdict:
    """Findings that no waiver excuses, and the waivers' patterns that excused something."""

    findings: list[Finding] = field(default_factory=list)
    used: set[tuple[str, str]] = field(default_factory=set)


def read_waivers(text: str) -> list[Waiver]:
    """Return the waivers of a file; raises PolicyError for an unknown control or a missing reason."""
    known = {control.name for control in CONTROLS}
    waivers = []
    for entry in yaml.safe_load(text) or []:
        if set(entry) != {"control", "services", "reason"} or len(str(entry["reason"]).split()) < 5:
            raise PolicyError(f"a waiver needs control, services and a reason that explains: {entry}")
        if entry["control"] not in known:
            raise PolicyError(f"a waiver names {entry['control']}, which is no control")
        waivers.append(Waiver(entry["control"], tuple(entry["services"]), str(entry["reason"])))
    return waivers


def judge(models: Mapping[str, Model], waivers: Sequence[Waiver]) -> Verdict:
    """Hold every service of every model to every control."""
    verdict = Verdict()
    for finding in _raw(models):
        patterns = [
            (waiver.control, pattern)
            for waiver in waivers
            if waiver.control == finding.control
            for pattern in waiver.services
            if fnmatch.fnmatchcase(finding.service, pattern)
        ]
        verdict.used.update(patterns)
        if not patterns:
            verdict.findings.append(finding)
    return verdict


def _raw(models: Mapping[str, Model]) -> Iterator[Finding]:
    for model_name, model in models.items():
        for service_name, service in model["services"].items():
            for control in CONTROLS:
                if control.applies(service) and (text := control.check(service, model)):
                    yield Finding(model_name, service_name, control.name, text)


def unused(waivers: Sequence[Waiver], used: set[tuple[str, str]]) -> list[Finding]:
    """Return a finding for each pattern of a waiver that excuses nothing."""
    return [
        Finding(WAIVERS, pattern, waiver.control, "excuses nothing: remove it")
        for waiver in waivers
        for pattern in waiver.services
        if (waiver.control, pattern) not in used
    ]


def files(setups: Path) -> list[Path]:
    """Return the Compose files that stand alone: the servers', and each stack's."""
    return sorted(setups.glob("server?.yml")) + [
        path
        for path in sorted(setups.glob("*/*.yml"))
        if "services" in (content := yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        and _stands_alone(path, content)
    ]


def _stands_alone(path: Path, content: Mapping[str, Any]) -> bool:
    """Whether a file is a stack: one that others only extend has no network of its own."""
    return path.name == "docker-compose.yml" or "networks" in content


def resolve(path: Path, environment: Mapping[str, str]) -> Model:
    """Return what Compose makes of a file, optional parts included; raises PolicyError with what it says."""
    done = subprocess.run(
        [
            *program(), "--project-name=policy", f"--env-file={places.VERSIONS}", f"--file={path}",
            "--profile=*", "config", "--format=json",
        ],
        env=dict(environment), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise PolicyError(
            f"{path.name} of {path.parent.name} can't be resolved: {done.stderr.strip()[-500:]}"
        )
    resolved: Model = json.loads(done.stdout)
    return resolved


def sample_environment() -> dict[str, str]:
    """Return the environment files are resolved in: a set of servers as the template describes it."""
    template = places.SETTINGS_TEMPLATE.read_text(encoding="utf-8")
    settings = server_settings.parse(server_settings.fill(template, SAMPLE))
    return settings | {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


def load(setups: Path) -> dict[str, Model]:
    """Return every model by its file's name below `setups`."""
    environment = sample_environment()
    return {str(path.relative_to(setups)): resolve(path, environment) for path in files(setups)}


def model_mutations(models: Mapping[str, Model], waivers: Sequence[Waiver]) -> Iterator[tuple[str, Model]]:
    """Yield copies of the models in which one service has lost one control that it has."""
    for model_name, model in models.items():
        for service_name, service in model["services"].items():
            for control in CONTROLS:
                if not (control.applies(service) and control.removable(service)):
                    continue
                if control.check(service, model) or _excused(waivers, control.name, service_name):
                    continue
                mutated = {**model, "services": {**model["services"], service_name: copy.deepcopy(service)}}
                control.remove(mutated["services"][service_name])
                yield f"{model_name}: {service_name} without {control.name}", mutated
        for network in sorted(set(model.get("networks") or {}) & INTERNAL_NETWORKS):
            mutated = copy.deepcopy(model)
            mutated["networks"][network].pop("internal", None)
            yield f"{model_name}: network {network} open", mutated


def _excused(waivers: Sequence[Waiver], control: str, service: str) -> bool:
    return any(
        fnmatch.fnmatchcase(service, pattern)
        for waiver in waivers
        if waiver.control == control
        for pattern in waiver.services
    )


# Lines of the Compose files that are controls, and what becomes of them.
_LINES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^ +(mem_limit|pids_limit|cap_drop|security_opt|restart): .*\n", re.M), ""),
    (re.compile(r"^ +(read_only: true|user: \"\$.*)\n", re.M), ""),
    (re.compile(r"^( +- \")\$\{[A-Z0-9_]+(?::[-?][^}]*)?\}:(?=[0-9]+:[0-9]+\")", re.M), r"\1"),
    (re.compile(r"\{internal: true\}"), "{}"),
    (re.compile(r", read_only: true"), ""),
    (re.compile(r"condition: service_(healthy|completed_successfully)"), "condition: service_started"),
    (re.compile(r", volume: \{nocopy: true\}"), ""),
    (re.compile(r"\$\{[A-Z_]+_IMAGE:\?[^}]*\}"), "debian:latest"),
    (re.compile(r":\$\{MLOPS_VERSION:-dev\}"), ":latest"),
    (re.compile(r"^ +test: .*\n", re.M), "      test: [NONE]\n"),
)  # fmt: skip


def file_mutations(setups: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield (what was done, file below `setups`, its new text): one control taken out of one file."""
    for path in sorted({setups / "common.yml", *setups.glob("*/*.yml")}):
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in _LINES:
            for match in pattern.finditer(text):
                if _from_base(path, match[0]):
                    continue
                mutated = text[: match.start()] + match.expand(replacement) + text[match.end() :]
                line = text.count("\n", 0, match.start()) + 1
                name = path.relative_to(setups)
                yield f"{name}:{line} without {match[0].strip()}", name, mutated


def _from_base(path: Path, line: str) -> bool:
    """Whether a service would get a line's setting from the file it extends: then nothing is taken away."""
    base = path.with_name("base.yml")
    key = line.split(":", maxsplit=1)[0].strip()
    return path != base and base.exists() and f" {key}:" in base.read_text(encoding="utf-8")


def try_file_mutations(waivers: Sequence[Waiver], every: int = 1, first: int = 0) -> tuple[int, list[str]]:
    """Judge copies of the files, one mutation each; return how many there were and those nobody noticed.

    `every` takes only each n-th, from `first` on. A copy that Compose itself refuses is noticed.
    """
    environment = sample_environment()
    missed, count = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        setups = Path(scratch) / places.SETUPS.name
        shutil.copytree(places.SETUPS, setups)
        for number, (what, name, text) in enumerate(file_mutations(places.SETUPS)):
            if number < first or (number - first) % every:
                continue
            count += 1
            original = (setups / name).read_text(encoding="utf-8")
            (setups / name).write_text(text, encoding="utf-8")
            if not _noticed(setups, name, environment, waivers):
                missed.append(what)
            (setups / name).write_text(original, encoding="utf-8")
    return count, missed


def _noticed(setups: Path, name: Path, environment: Mapping[str, str], waivers: Sequence[Waiver]) -> bool:
    """Whether a stack that the file belongs to is refused or found wanting."""
    stack = [path for path in files(setups) if path.parent == (setups / name).parent and path != setups]
    concerned = [setups / name] if setups / name in stack else stack or files(setups)
    for path in concerned:
        try:
            model = resolve(path, environment)
        except PolicyError:
            return True
        if judge({path.name: model}, waivers).findings:
            return True
    return False


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="server_tools policy", description=__doc__)
    parser.add_argument(
        "--mutate", action="store_true", help="prove that each control is noticed when it is gone"
    )
    options = parser.parse_args(arguments[1:])
    try:
        waivers = read_waivers((places.SETUPS / WAIVERS).read_text(encoding="utf-8"))
        models = load(places.SETUPS)
        verdict = judge(models, waivers)
        findings = verdict.findings + unused(waivers, verdict.used)
        for finding in findings:
            print(finding)
        services = sum(len(model["services"]) for model in models.values())
        print(
            f"{len(models)} files, {services} services, {len(CONTROLS)} controls, {len(waivers)} waivers: "
            f"{len(findings)} findings"
        )
        if options.mutate:
            return max(1 if findings else 0, _mutate(models, waivers))
    except (PolicyError, ComposeError, OSError) as error:
        print(f"server_tools policy: {error}", file=sys.stderr)
        return 2
    return 1 if findings else 0


def _mutate(models: Mapping[str, Model], waivers: Sequence[Waiver]) -> int:
    count, missed = 0, []
    for what, mutated in model_mutations(models, waivers):
        count += 1
        if not judge({"copy": mutated}, waivers).findings:
            missed.append(what)
    in_files, missed_in_files = try_file_mutations(waivers)
    for what in missed + missed_in_files:
        print(f"not noticed: {what}")
    print(f"controls taken from resolved services: {count - len(missed)} of {count} noticed")
    print(f"lines taken from files: {in_files - len(missed_in_files)} of {in_files} noticed")
    return 1 if missed or missed_in_files else 0


if __name__ == "__main__":
    sys.exit(main(["policy", *sys.argv[1:]]))
