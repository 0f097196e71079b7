"""`python -m local_engine up|down|stand-ins [SETTING...]|exec -- COMMAND`: a Docker Engine and its images.

`stand-ins` makes the images of other projects, pinned in docker_compose_setups/versions.env, available:
pulled, or made here where no registry answers. Without names, all of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from local_engine.base_images import PYTHON, ensure
from local_engine.engine import Engine, EngineError
from local_engine.stand_ins.build import Outcome
from local_engine.stand_ins.build import ensure as ensure_stand_ins


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="local_engine", description=__doc__)
    parser.add_argument("verb", choices=["up", "down", "exec", "stand-ins"])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for exec, after --; for stand-ins, names")
    options = parser.parse_args(arguments)
    local = os.environ.get("LOCAL_DIR") or Path(__file__).resolve().parents[2] / ".local"
    engine = Engine(Path(local).resolve() / "engine")
    try:
        if options.verb == "down":
            print("the private engine has ended" if engine.stop() else "no private engine runs")
            return 0
        host = engine.start()
        print(f"engine at {host}; {PYTHON}: {ensure(host)}", flush=True)
        if options.verb == "stand-ins":
            ensure_stand_ins(host, options.command, _show)
            return 0
    except EngineError as error:
        print(f"local_engine: {error}", file=sys.stderr)
        return 1
    if options.verb == "up":
        return 0
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("exec needs a command")
    # Without buildx, which a plain installation lacks, only the classic builder is there.
    environment = os.environ | {"DOCKER_HOST": host, "DOCKER_BUILDKIT": "0"}
    return subprocess.run(command, env=environment, check=False).returncode


def _show(outcome: Outcome) -> None:
    print(f"{outcome.name:55} {outcome.state:9} {outcome.seconds:6.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
