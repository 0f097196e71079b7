"""Running programs: output captured, a failure told with its last lines and never with a secret."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from server_tools.backup.errors import BackupError


def run(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program and return it with its output; raises BackupError when it fails (unless `check` is off).

    Secrets belong into `env`, which is added to this process's environment and never shown.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise BackupError(f"the program {words[0]} is not here") from None
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise BackupError(f"{Path(words[0]).name} failed ({done.returncode}): {said}")
    return done
