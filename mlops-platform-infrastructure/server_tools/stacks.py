"""`python -m server_tools up|down|ps|logs|config --server 1|2|3|all`: one server's stacks, or all three's.

`up` says how long each service took until it was healthy, and stops before it starts anything when an image
is neither there nor can be pulled. What is not to run here is named: WITHOUT="grafana kibana" or --without.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server_tools import secrets as server_secrets
from server_tools import server_settings
from server_tools.compose import SERVERS, ComposeError, Project, docker, environment, settings
from server_tools.startup import (
    State,
    UnknownServiceError,
    check_names,
    choose,
    images,
    is_job,
    read_elsewhere,
)

OWN_IMAGES = "mlops/"
POLL_SECONDS = 0.5
HEALTHY_SECONDS = 300.0
PULL_SECONDS = 1800
LAST_LINES = "25"


class UpError(Exception):
    """A server can't be brought up; the message says what to do."""


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line, with what the environment adds (PROFILES, WITHOUT)."""
    parser = argparse.ArgumentParser(prog="server_tools", description=__doc__)
    parser.add_argument("verb", choices=["up", "down", "ps", "logs", "config"])
    parser.add_argument("--server", default="all", choices=[*SERVERS, "all"])
    parser.add_argument("--without", action="append", default=[], metavar="SERVICE", help="up: leave it out")
    parser.add_argument("--profile", action="append", default=[], help="an optional part, such as loki")
    parser.add_argument("--timeout", type=float, default=HEALTHY_SECONDS, help="up: seconds until healthy")
    parser.add_argument("--json", type=Path, help="up: write how long each service took")
    parser.add_argument("--delete-data", action="store_true", help="down: delete the volumes too")
    parser.add_argument("service", nargs="*", help="logs: of these services alone")
    options = parser.parse_intermixed_args(arguments)
    options.profile += os.environ.get("PROFILES", "").split()
    options.without += os.environ.get("WITHOUT", "").split()
    return options


def main(arguments: list[str]) -> int:
    """Run the command line."""
    options = read_arguments(arguments)
    servers = SERVERS if options.server == "all" else (options.server,)
    try:
        if options.verb == "up":
            return _up(servers, options)
        # The last server stops first: it uses the others.
        order = reversed(servers) if options.verb == "down" else servers
        for server in order:
            _other_verb(server, options)
    except (
        ComposeError,
        UpError,
        UnknownServiceError,
        server_settings.SettingsError,
        server_secrets.SecretsError,
    ) as error:
        print(f"server_tools {options.verb}: {error}", file=sys.stderr)
        return 1
    return 0


def _other_verb(server: str, options: argparse.Namespace) -> None:
    project = Project.of_server(server, ["*"] if options.verb in {"down", "ps", "logs"} else options.profile)
    words = {
        "down": ["down", "--remove-orphans", *(["--volumes"] if options.delete_data else [])],
        "ps": ["ps", "--all", "--format", "table {{.Service}}\t{{.Status}}\t{{.Ports}}"],
        "logs": ["logs", "--no-color", "--tail", "100", *options.service],
        "config": ["config"],
    }[options.verb]
    done = subprocess.run(project.command(*words), env=environment(), check=False)
    if done.returncode != 0:
        raise ComposeError(f"{options.verb} of server {server} ended with {done.returncode}")


def require_engine() -> None:
    """Raise UpError where no Docker Engine answers: without one every image would seem to be missing."""
    if shutil.which("docker") is None:
        raise UpError("Docker is not installed (Debian: apt-get install docker.io)")
    asked = docker("version", "--format", "{{.Server.Version}}")
    if asked.returncode != 0:
        raise UpError(f"no Docker Engine answers: {asked.stderr.strip().splitlines()[-1]}")


def _up(servers: Sequence[str], options: argparse.Namespace) -> int:
    require_engine()
    prepare()
    projects = {server: Project.of_server(server, options.profile) for server in servers}
    models = {server: project.config()["services"] for server, project in projects.items()}
    every = {name for server in SERVERS for name in Project.of_server(server, ["*"]).config()["services"]}
    check_names(options.without, every)
    known = settings()
    choices = {
        server: choose(model, options.without, read_elsewhere(server, known))
        for server, model in models.items()
    }
    for server, choice in choices.items():
        for name, reason in choice.left_out.items():
            print(f"server {server}: left out {name} ({reason})", flush=True)
    ensure_images({server: images(models[server], choices[server].started) for server in servers})
    measured: dict[str, dict[str, float]] = {}
    for server in servers:
        measured[server] = start(
            projects[server], models[server], choices[server].started, seconds=options.timeout
        )
    if options.json:
        _write_report(options.json, measured)
    return 0


def prepare() -> None:
    """Make what the containers read: secrets, settings, configuration files rendered from the templates."""
    if server_secrets.main(["secrets"]) != 0:
        raise UpError("the secrets are not usable")
    if importlib.util.find_spec("server_tools.render") is None:
        return
    render = importlib.import_module("server_tools.render")
    if render.main(["render"]) != 0:
        raise UpError("the configuration files could not be rendered")


def ensure_images(wanted: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Pull the images that are not there; raises UpError that names those that can't be had."""
    missing: list[str] = []
    users: dict[str, list[str]] = {}
    for by_image in wanted.values():
        for image, names in by_image.items():
            users.setdefault(image, []).extend(names)
    for image, names in users.items():
        if docker("image", "inspect", "--format", "{{.Id}}", image).returncode == 0:
            continue
        if not image.startswith(OWN_IMAGES) and _pull(image):
            continue
        hint = "build it: make images" if image.startswith(OWN_IMAGES) else "it can't be pulled"
        missing.append(f"{image} of {', '.join(names)} ({hint})")
    if missing:
        raise UpError(
            "nothing was started; images are missing:\n  "
            + "\n  ".join(missing)
            + '\nleave services out on purpose with WITHOUT="name ..."'
        )


def _pull(image: str) -> bool:
    print(f"pulling {image}", flush=True)
    try:
        done = subprocess.run(["docker", "pull", "--quiet", image], timeout=PULL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def start(
    project: Project, services: Mapping[str, Any], names: Sequence[str], seconds: float
) -> dict[str, float]:
    """Start the named services and wait until each is ready; return the seconds each took.

    Compose keeps the order (depends_on) while this watches. Raises UpError with the last lines of what fails.
    """
    began = time.monotonic()
    print(f"{project.name}: {len(names)} services", flush=True)
    command = project.command("up", "--detach", "--no-build", "--pull", "never", "--quiet-pull", *names)
    compose = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    took: dict[str, float] = {}
    said = ""
    while True:
        running = compose.poll() is None
        if not running and compose.stderr is not None and not said:
            said = compose.stderr.read()
        states = _states(project)
        for name in names:
            state, job = states.get(name), is_job(services[name])
            if name in took and not job and (state is None or not state.ready(job)):
                # That was the container of before, which Compose has replaced meanwhile.
                del took[name]
            if state is None or name in took:
                continue
            if job and not _after(state.started_at, began):
                continue
            if state.failed(job):
                compose.terminate()
                raise UpError(_why(project, [name], states, said))
            if state.ready(job):
                took[name] = time.monotonic() - began
                word = "done" if job else "healthy"
                print(f"  {name:<26} {word:<8} {took[name]:6.1f} s", flush=True)
        waiting = [name for name in names if name not in took]
        if not running and compose.returncode != 0:
            raise UpError(_why(project, waiting, states, said))
        if not waiting:
            if not running:
                break
        elif time.monotonic() - began > seconds:
            compose.terminate()
            raise UpError(f"not healthy after {seconds:.0f} s: {_why(project, waiting, states, said)}")
        time.sleep(POLL_SECONDS)
    print(f"{project.name}: healthy in {time.monotonic() - began:.1f} s", flush=True)
    return took | {"": time.monotonic() - began}


def _after(started_at: str, began: float) -> bool:
    """Whether a job's container was started by this call: what an earlier one left behind doesn't count."""
    if not started_at:
        return False
    seconds_ago = (datetime.now(UTC) - datetime.fromisoformat(started_at[:19] + "+00:00")).total_seconds()
    return seconds_ago <= time.monotonic() - began + 2


def _states(project: Project) -> dict[str, State]:
    listed = docker(
        "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={project.name}",
        "--filter", "label=com.docker.compose.oneoff=False",
    )  # fmt: skip
    ids = listed.stdout.split()
    if listed.returncode != 0:
        raise ComposeError(f"the Docker Engine does not answer: {listed.stderr.strip()}")
    if not ids:
        return {}
    inspected = docker("inspect", *ids)
    # A container that Compose has just replaced is gone; the next look finds the new one.
    found = json.loads(inspected.stdout or "[]")
    return {
        entry["Config"]["Labels"]["com.docker.compose.service"]: State(
            entry["State"]["Status"],
            (entry["State"].get("Health") or {}).get("Status", ""),
            int(entry["State"]["ExitCode"]),
            entry["State"].get("StartedAt", ""),
        )
        for entry in found
    }


def _why(project: Project, waiting: Sequence[str], states: Mapping[str, State], said: str) -> str:
    lines = [
        line
        for line in said.strip().splitlines()
        if "rror" in line or "unhealthy" in line or "failed" in line
    ]
    parts = [line.strip() for line in lines[-5:]]
    for name in waiting:
        state = states.get(name)
        if state is None or state.status == "created" or (said and state.health == "starting"):
            continue
        parts.append(f"{name} ({state.describe()}), its last lines:")
        log = subprocess.run(
            project.command("logs", "--no-color", "--no-log-prefix", "--tail", LAST_LINES, name),
            env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        parts += [f"  | {line}" for line in log.stdout.strip().splitlines()]
    not_begun = [name for name in waiting if name not in states or states[name].status == "created"]
    if not_begun:
        parts.append(f"not begun: {', '.join(not_begun)}")
    return "\n".join(parts)


def _write_report(path: Path, measured: Mapping[str, Mapping[str, float]]) -> None:
    results = [
        {
            "name": f"server{server}{'/' + name if name else ''}",
            "value": round(value, 1),
            "unit": "s",
            "target": 300 if not name else None,
            "met": value <= 300 if not name else None,
        }
        for server, took in measured.items()
        for name, value in took.items()
    ]
    report = {
        "command": "python -m server_tools " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
