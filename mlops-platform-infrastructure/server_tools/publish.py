"""`python -m server_tools release build|push|tags`: our images, tagged by their sources, and into a registry.

REGISTRY_LOGIN_USR and REGISTRY_LOGIN_PSW log in to it; the password goes to the client's standard input and
to a folder that is deleted afterwards, never into a command line or the user's own settings.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from server_tools import places
from server_tools.releases import ReleaseError, chosen, reference, references, tag


def build(images: list[str]) -> None:
    """Build what is not there yet; a tag stands for sources, so an image that is there is the right one."""
    for image in images:
        version = tag(image)
        name = reference(image, version)
        if not version.endswith("-dirty") and _call("docker", "image", "inspect", name, quiet=True) == 0:
            print(f"{name} is there")
            continue
        environment = dict(os.environ, MLOPS_VERSION=version)
        done = subprocess.run(
            [sys.executable, "-m", "server_tools", "images", "build", "--no-others", image],
            cwd=places.ROOT,
            env=environment,
            check=False,
        )
        if done.returncode:
            raise ReleaseError(f"{name} can't be built")
        if _call("docker", "image", "inspect", name, quiet=True):
            raise ReleaseError(f"{name} was built under another name")


def push(images: list[str], registry: str) -> list[str]:
    """Tag and push images; return their full names. ReleaseError for sources with uncommitted changes."""
    names = references(images, registry)
    for name in names.values():
        if name.endswith("-dirty"):
            raise ReleaseError(f"{name}: commit the changes first, others could not build it again")
    with client(registry) as docker:
        for image, name in names.items():
            if _call(*docker, "tag", reference(image, tag(image)), name) or _call(
                *docker, "push", "--quiet", name
            ):
                raise ReleaseError(f"{name} can't be pushed")
    return list(names.values())


@contextmanager
def client(registry: str) -> Iterator[list[str]]:
    """Give a docker command that is logged in to a registry, if there is a login, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="registry-login-") as settings:
        docker = ["docker", "--config", settings]
        user, password = os.environ.get("REGISTRY_LOGIN_USR"), os.environ.get("REGISTRY_LOGIN_PSW")
        if user and password:
            host = registry.partition("/")[0]
            command = [*docker, "login", "--username", user, "--password-stdin", host]
            logged_in = subprocess.run(command, input=password, capture_output=True, text=True, check=False)
            if logged_in.returncode:
                raise ReleaseError(f"{host} refused the login: {logged_in.stderr.strip()}")
        yield docker


def _call(*command: str, quiet: bool = False) -> int:
    return subprocess.run(
        command,
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.DEVNULL if quiet else None,
        check=False,
    ).returncode


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="server_tools release", description=__doc__)
    parser.add_argument("what", choices=("build", "push", "tags"))
    parser.add_argument("--images", required=True, help="a,b")
    parser.add_argument(
        "--registry", default="", help="host:port/path; without one, images stay on this machine"
    )
    given = parser.parse_args(arguments[1:])
    try:
        images = chosen(given.images)
        if given.what == "build":
            build(images)
        elif given.what == "tags":
            print("\n".join(references(images, given.registry).values()))
        elif given.registry:
            print("\n".join(push(images, given.registry)))
        else:
            print("no REGISTRY: the images stay on this machine")
    except ReleaseError as error:
        print(f"server_tools release: {error}", file=sys.stderr)
        return 1
    return 0
