"""`python -m server_tools deploy|rollback`: put this commit's images on a server, or go back.

The stacks are started from a copy of the repository at that commit, below `releases/` of the servers' folder:
what containers mount stays as it was deployed, whatever happens to the folder that this was called from.
`services` prints a server's services as Compose resolves them.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server_tools import places, server_settings
from server_tools.compose import ComposeError, Project, docker, settings
from server_tools.deployments import Deployments, NothingToRollBackError, uses
from server_tools.publish import client
from server_tools.releases import ReleaseError, chosen, git, reference, references

SERVERS = ("server1", "server2", "server3")
TASKS_RUN_ON = "server2"
KEPT_RELEASES = 5
ROOT_NAME = places.ROOT.name


def release(commit: str, folder: Path) -> Path:
    """Return the copy of the repository at a commit, made where it is missing; old copies go."""
    releases = folder / "releases"
    target = releases / commit
    if not target.exists():
        releases.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=releases, prefix=".new-") as new:
            archive = Path(new) / "repository.tar"
            git("archive", "--format=tar", f"--output={archive}", commit)
            copy = Path(new) / commit
            copy.mkdir()
            subprocess.run(["tar", "-xf", archive, "-C", copy], check=True)
            os.rename(copy, target)
    return target


def forget_releases(folder: Path, in_use: set[str]) -> None:
    """Delete all but the newest copies and those that a server stands on or would go back to."""
    found = sorted((folder / "releases").glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)
    for path in found[:-KEPT_RELEASES]:
        if path.name not in in_use:
            shutil.rmtree(path)


class Tasks:
    """Images that no service runs: Airflow starts tasks in them, as `mlops/<image>:<MLOPS_VERSION>`."""

    def __init__(self, version: str) -> None:
        self.version = version

    def meaning(self, image: str) -> str | None:
        """Return the id that the name of an image means now."""
        found = docker("image", "inspect", "--format", "{{.Id}}", reference(image, self.version))
        return found.stdout.strip() or None

    def give(self, image: str, target: str | None) -> None:
        """Let the name mean another image, or nothing."""
        name = reference(image, self.version)
        command = ["tag", target, name] if target else ["image", "rm", name]
        ran = docker(*command)
        if ran.returncode:
            raise ReleaseError(f"docker {' '.join(command)}: {ran.stderr.strip()}")


class Compose:
    """The verbs of `server_tools` in a release, for one set of servers."""

    def __init__(self, folder: Path, commit: str) -> None:
        self.root = release(commit, folder) / ROOT_NAME
        self.environment = dict(os.environ, MLOPS_SERVERS_DIR=str(folder))

    def services(self, server: str) -> dict[str, Any]:
        """Return a server's services as Compose resolves them."""
        return dict(json.loads(self._call("services", "--server", server)))

    def up(self, server: str) -> None:
        """Start what changed on a server and wait until all of it is healthy."""
        self._call("up", "--server", server.removeprefix("server"), shown=True)

    def _call(self, *arguments: str, shown: bool = False) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "server_tools", *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=None if shown else subprocess.PIPE,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise ReleaseError(f"server_tools {' '.join(arguments)} failed in {self.root}")
        return ran.stdout or ""


def must_exist(images: Mapping[str, str], registry: str) -> None:
    """Fetch images that are not here from the registry; raise ReleaseError for one that was never built."""
    missing = [image for image in images.values() if docker("image", "inspect", image).returncode]
    if missing and not registry:
        raise ReleaseError(f"{missing[0]} is not on this machine and there is no REGISTRY: build it first")
    if missing:
        with client(registry) as signed_in:
            for image in missing:
                if subprocess.run([*signed_in, "pull", "--quiet", image], check=False).returncode:
                    raise ReleaseError(f"{image} can't be pulled")


def deploy(server: str, images: Sequence[str], *, with_stacks: bool, folder: Path, registry: str = "") -> str:
    """Pin images at this commit's tags, and the Compose files if asked to; start what changed.

    Returns what was done.
    """
    state = Deployments(folder, server)
    commit = git("rev-parse", "HEAD")
    target = commit if with_stacks or state.release is None else state.release
    compose = Compose(folder, target)
    services = compose.services(server)
    in_tasks = {image for image in images if server == TASKS_RUN_ON and not uses(services, image)}
    wanted = {
        image: name
        for image, name in references(images, registry).items()
        if image in in_tasks or uses(services, image)
    }
    if not state.changes(wanted) and target == state.release:
        return (
            f"{server} already runs {', '.join(wanted.values()) or 'what was asked for'}: nothing to deploy"
        )
    must_exist(wanted, registry)
    before = state.release
    tasks = Tasks(settings().get("MLOPS_VERSION", "dev"))
    for image in sorted(in_tasks - set(state.originals)):
        state.originals[image] = tasks.meaning(image)
    state.deploy(_build(), wanted, target, os.environ.get("APPROVED_BY", ""))
    # Written before anything starts: a deployment that fails half-way can be rolled back.
    state.save(services)
    for image in sorted(in_tasks):
        tasks.give(image, wanted[image])
    compose.up(server)
    forget_releases(folder, {target, *filter(None, (before,)), *_standing(folder)})
    return f"{server}: {', '.join(wanted.values()) or 'no image'}, Compose files of {target[:12]}"


def roll_back(server: str, *, folder: Path) -> str:
    """Go back to what ran before this build's deployment. Returns what was done."""
    state = Deployments(folder, server)
    entry = state.roll_back(os.environ.get("BUILD_TAG"))
    # Without an earlier release: that deployment's own Compose files, with the images that they name.
    compose = Compose(folder, state.release or entry["release"]["to"])
    state.save(compose.services(server))
    tasks = Tasks(settings().get("MLOPS_VERSION", "dev"))
    for image in sorted(set(entry["images"]) & set(state.originals)):
        tasks.give(image, state.pins.get(image, state.originals[image]))
    compose.up(server)
    images = {name: change["from"] or "the stack's own" for name, change in entry["images"].items()}
    return f"{server} is back to {images or 'the Compose files of before'}"


def _standing(folder: Path) -> set[str]:
    found = set()
    for server in SERVERS:
        state = Deployments(folder, server)
        found.add(state.release or "")
        found |= {entry["release"]["from"] or "" for entry in state.history[-1:]}
    return found


def _build() -> str:
    return os.environ.get("BUILD_TAG") or f"by-hand-{git('rev-parse', '--short=12', 'HEAD')}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder: two jobs must not change one server set at the same time."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "deployments.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog=f"server_tools {arguments[0]}", description=__doc__)
    parser.add_argument("--server", required=True, choices=SERVERS)
    if arguments[0] == "deploy":
        parser.add_argument("--images", default="", help="a,b")
        parser.add_argument("--with-stacks", action="store_true", help="also this commit's Compose files")
        parser.add_argument("--registry", default="", help="host:port/path that the images are pulled from")
    given = parser.parse_args(arguments[1:])
    if arguments[0] == "services":
        print(json.dumps(Project.of_server(given.server.removeprefix("server")).config()["services"]))
        return 0
    folder = places.servers_dir()
    try:
        with alone(folder):
            if arguments[0] == "deploy":
                images = chosen(given.images)
                said = deploy(
                    given.server,
                    images,
                    with_stacks=given.with_stacks,
                    folder=folder,
                    registry=given.registry,
                )
            else:
                said = roll_back(given.server, folder=folder)
    except NothingToRollBackError as nothing:
        said = str(nothing)
    except (ReleaseError, ComposeError, server_settings.SettingsError) as error:
        print(f"server_tools {arguments[0]}: {error}", file=sys.stderr)
        return 1
    print(said)
    return 0
