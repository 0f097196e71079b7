"""`python -m server_tools backup|restore|drill`: what a person or a DAG calls.

`backup` and `restore` work in the containers of a server's backup stack; `backup --only mlflow-db` dumps
MLflow's database from wherever it is called; `drill` needs a Docker Engine and nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server_tools.backup.errors import BackupError, NotEmptyError

AGENT = ("python3", "-m", "server_tools.backup.agent")


@dataclass(frozen=True)
class Place:
    """Where a part is restored to: the server whose backup stack does it, a volume or a folder."""

    server: str
    volume: str = ""
    folder: str = ""


# Redis' volume is server 2's; its backup is server 1's.
PLACES = {
    "postgres": Place("1", "server1_postgres-data", "18/docker"),
    "redis": Place("1", "server2_redis-data"),
    "objects": Place("1"),
    "secrets": Place("1"),
    "jenkins": Place("2", "server2_jenkins-home"),
    "spool": Place("3"),
}


def main(arguments: Sequence[str]) -> int:
    """Run the verb that the first word names."""
    try:
        verb = arguments[0]
        if verb == "backup":
            return _backup(_backup_parser().parse_args(arguments[1:]))
        if verb == "restore":
            return _restore(_restore_parser().parse_args(arguments[1:]))
        drill = importlib.import_module("server_tools.backup.drill")
        return int(drill.main(list(arguments[1:])))
    except BackupError as error:
        print(f"server_tools {arguments[0]}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _backup_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="server_tools backup", description="Back up now.")
    parser.add_argument("--server", choices=["1", "2", "3", "all"], default="all")
    parser.add_argument("--no-base", action="store_true", help="no base backup of PostgreSQL, only WAL")
    parser.add_argument("--list", action="store_true", help="list what there is instead")
    parser.add_argument("--only", choices=["mlflow-db"], help="a logical backup of MLflow's database alone")
    return parser


def _restore_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="server_tools restore", description="Restore one part.")
    parser.add_argument("part", choices=sorted(PLACES))
    parser.add_argument("--to-time", help="PostgreSQL: until this moment, e.g. 2026-11-22T03:00:00Z")
    parser.add_argument("--incarnation", help="PostgreSQL: of which database (backup --list)")
    parser.add_argument("--generation", help="Redis: which generation (backup --list)")
    parser.add_argument("--snapshot", help="objects, folders: which version (backup --list)")
    parser.add_argument("--replace", action="store_true", help="put aside what is there")
    parser.add_argument("--target-volume", help="into this volume instead of the part's own")
    parser.add_argument("--target-folder", type=Path, help="into this folder of the host")
    return parser


def _backup(asked: argparse.Namespace) -> int:
    if asked.only:
        logical = importlib.import_module("server_tools.backup.logical")
        return int(logical.back_up_mlflow(os.environ))
    words = ["list"] if asked.list else ["backup", *(["--no-base"] if asked.no_base else [])]
    failed = []
    for server in ("1", "2", "3") if asked.server == "all" else (asked.server,):
        print(f"server {server}", flush=True)
        # `exec` does not pass the image's entrypoint, which turns the secrets into variables.
        if _compose(server, "exec", "-T", "backup", "mlops-entrypoint", *AGENT, *words) != 0:
            failed.append(server)
    if failed:
        print(f"the backup of server {', '.join(failed)} failed or is incomplete", file=sys.stderr)
    return 1 if failed else 0


def _restore(asked: argparse.Namespace) -> int:
    place = PLACES[asked.part]
    words = ["restore", asked.part, *_options(asked)]
    mounts: list[str] = []
    if asked.part != "objects":
        source = asked.target_volume or (place.volume and f"{_prefix()}-{place.volume}")
        if asked.target_folder or not source:
            source = str(_folder(asked.target_folder, asked.part))
        else:
            _must_be_at_rest(source)
            # A volume that was lost and made anew belongs to root.
            owner = ["--volume", f"{source}:/volumes/target", "backup-volumes", "/volumes/target"]
            if _compose(place.server, "run", "--rm", "-T", "--no-deps", *owner) != 0:
                raise BackupError(f"volume {source} could not be given to the containers' user")
        mounts = ["--volume", f"{source}:/target"]
        words += ["--target", str(Path("/target", place.folder))]
    return _compose(place.server, "run", "--rm", "-T", "--no-deps", *mounts, "backup", *AGENT, *words)


def _options(asked: argparse.Namespace) -> list[str]:
    """Return the agent's options for those that were given.

    >>> _options(_restore_parser().parse_args(["redis", "--generation", "7", "--replace"]))
    ['--generation', '7', '--replace']
    """
    words = []
    for name in ("to_time", "incarnation", "generation", "snapshot"):
        if value := getattr(asked, name):
            words += [f"--{name.replace('_', '-')}", value]
    return [*words, *(["--replace"] if asked.replace else [])]


def _must_be_at_rest(volume: str) -> None:
    command = ["docker", "ps", "--filter", f"volume={volume}", "--format", "{{.Names}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackupError(f"the Docker Engine does not answer: {done.stderr.strip()[-300:]}")
    if names := done.stdout.split():
        raise NotEmptyError(f"{', '.join(names)} uses volume {volume}: stop it first (docker stop)")


def _folder(wanted: Path | None, part: str) -> Path:
    """Return a folder of the host that belongs to the containers' user."""
    places = importlib.import_module("server_tools.places")
    settings = importlib.import_module("server_tools.compose").settings()
    folder = (wanted or places.servers_dir() / "restored" / part).resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, int(settings["MLOPS_UID"]), int(settings["MLOPS_GID"]))
    return Path(folder)


def _prefix() -> str:
    settings = importlib.import_module("server_tools.compose").settings()
    return str(settings.get("COMPOSE_PROJECT", "mlops"))


def _compose(server: str, *words: str) -> int:
    # Imported here: the image, where `backup --only mlflow-db` runs too, has no Compose.
    compose = importlib.import_module("server_tools.compose")
    project = compose.Project.of_server(server)
    return subprocess.run(project.command(*words), env=compose.environment(), check=False).returncode
