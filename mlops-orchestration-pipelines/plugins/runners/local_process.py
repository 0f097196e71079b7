"""Runs a command of another root as a process group of its own, in that root's environment."""

from __future__ import annotations

import codecs
import os
import re
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# The orchestrator's own settings (its database's password among them) and Python paths. A command may keep
# its compiled modules whatever the orchestrator does: without them each start costs seconds more.
PRIVATE = re.compile(r"AIRFLOW|^(PYTHONPATH|PYTHONHOME|PYTHONDONTWRITEBYTECODE|VIRTUAL_ENV)$")
_SETTING = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LINE_END = re.compile(r"\r\n|\n|\r")
LAST_LINES = 25
_LONGEST_LINE = 4000
_POLL_SECONDS = 0.25


class CommandError(Exception):
    """A command did not do its job."""


class CommandFailedError(CommandError):
    """A command ended with an exit code other than 0; the message holds its last lines."""


class NotSetUpError(CommandError):
    """What the command needs is not there (environment, folder or setting): trying again can't help."""


@dataclass(frozen=True)
class Layout:
    """Where the roots and their environments stand."""

    repository: Path
    local_dir: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], fallback: Path) -> Layout:
        """Read `MLOPS_REPOSITORY` (default: `fallback`) and `LOCAL_DIR` (default: `.local` in it)."""
        repository = Path(environ.get("MLOPS_REPOSITORY") or fallback)
        return cls(repository, Path(environ.get("LOCAL_DIR") or repository / ".local"))

    def venv(self, root: str) -> Path:
        """Return the environment of `root`."""
        return self.local_dir / "venvs" / root


def child_environment(
    environ: Mapping[str, str], layout: Layout, root: str, additions: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables a command of `root` gets: the platform's settings, not the orchestrator's own.

    >>> layout = Layout(Path("/repo"), Path("/repo/.local"))
    >>> env = child_environment({"PATH": "/bin", "AIRFLOW__API__SECRET_KEY": "x"}, layout, "r", {"A": "1"})
    >>> env["PATH"], env["PYTHONPATH"], env["A"], "AIRFLOW__API__SECRET_KEY" in env
    ('/repo/.local/venvs/r/bin:/bin', '/repo/r', '1', False)
    """
    venv = layout.venv(root)
    kept = {name: value for name, value in environ.items() if not PRIVATE.search(name)}
    return kept | {
        "PATH": os.pathsep.join(part for part in (str(venv / "bin"), environ.get("PATH", "")) if part),
        "VIRTUAL_ENV": str(venv),
        "VENV": str(venv),
        "LOCAL_DIR": str(layout.local_dir),
        "PYTHONPATH": str(layout.repository / root),
        "PYTHONUNBUFFERED": "1",
        **additions,
    }


def expand(argument: str, environ: Mapping[str, str]) -> str:
    """Replace each `${NAME}` by its setting; NotSetUpError names the one that is missing.

    >>> expand("${DATA_DIR}/landing", {"DATA_DIR": "/data"})
    '/data/landing'
    """

    def value(match: re.Match[str]) -> str:
        try:
            return environ[match[1]]
        except KeyError:
            raise NotSetUpError(f"the setting {match[1]} is missing: load the stack's settings") from None

    return _SETTING.sub(value, argument)


@dataclass
class LocalProcessRunner:
    """Runs commands on this machine; `stop` may be called from a signal handler while one runs."""

    layout: Layout
    grace_seconds: float = 10.0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def run(
        self,
        *,
        root: str,
        workdir: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        additions: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> None:
        """Run `command` in `<repository>/<root>/<workdir>` and give `on_line` each line of its output.

        A first word `python` is the root's interpreter. Whatever the command started ends with it. Raises
        NotSetUpError before the start, CommandFailedError on an exit code other than 0.
        """
        folder = self.layout.repository / root / workdir
        env = child_environment(environ, self.layout, root, additions)
        argv = [expand(argument, env) for argument in command]
        argv[0] = self._program(argv[0], root, folder)
        last: deque[str] = deque(maxlen=LAST_LINES)
        # Output and errors share one pipe, so the log keeps their order. No shell takes part.
        process = self._process = subprocess.Popen(  # noqa: S603
            argv,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            for line in _lines(process):
                last.append(line)
                on_line(line)
        finally:
            code = self._end(process)
            self._process = None
        if code != 0:
            shown = "\n".join(f"  | {line}" for line in last) or "  (it printed nothing)"
            name = " ".join(command)
            raise CommandFailedError(f"`{name}` of {root} {ending(code)}; its last lines:\n{shown}")

    def stop(self) -> None:
        """Ask the running command's whole process group to end."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGTERM)

    def _program(self, name: str, root: str, folder: Path) -> str:
        if not folder.is_dir():
            raise NotSetUpError(f"there is no folder {folder}: is MLOPS_REPOSITORY right?")
        interpreter = self.layout.venv(root) / "bin" / "python"
        if not interpreter.exists():
            raise NotSetUpError(f"the environment of {root} is missing ({interpreter}): run `make setup`")
        if name == "python":
            return str(interpreter)
        if "/" not in name:
            return name
        program = folder / name
        if not os.access(program, os.X_OK):
            raise NotSetUpError(f"there is no executable {program}")
        return str(program)

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """End what is left of the group, politely first, and return the command's exit code."""
        deadline = time.monotonic() + self.grace_seconds
        if not _has_exited(process.pid):
            _signal_group(process.pid, signal.SIGTERM)
            while not _has_exited(process.pid) and time.monotonic() < deadline:
                time.sleep(0.05)
        # Until it is waited for, the leader's id can't be taken by another process: the group is ours.
        _signal_group(process.pid, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()
        return process.wait()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield lines until the command has ended, even if something it left behind holds the pipe open."""
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pending = ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            exited = _has_exited(process.pid)
            if selector.select(0 if exited else _POLL_SECONDS):
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                *lines, pending = _LINE_END.split(pending + decoder.decode(chunk))
                if len(pending) > _LONGEST_LINE:
                    lines, pending = [*lines, pending], ""
                yield from filter(None, map(cleaned, lines))
            elif exited:
                break
    if last := cleaned(pending):
        yield last


def cleaned(line: str) -> str:
    """Return a line fit for a log: no colours, no blank end, not endless.

    >>> cleaned("\\x1b[32mPASS\\x1b[0m  ")
    'PASS'
    """
    return _COLOUR.sub("", line).rstrip()[:_LONGEST_LINE]


def _has_exited(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def ending(code: int) -> str:
    """Say how a command ended.

    >>> ending(2), ending(-9)
    ('exited with 2', 'was killed by SIGKILL')
    """
    return f"exited with {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
