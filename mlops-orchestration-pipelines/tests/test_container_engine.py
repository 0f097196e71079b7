"""Commands in containers of a real Docker Engine (`make test-engine`)."""

from __future__ import annotations

import threading
import time

import pytest

from runners.container import ContainerRunner, ContainerSettings, connect
from runners.local_process import CommandFailedError, NotSetUpError

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

PYTHON = "python:3.11-slim-bookworm"


def settings(**changes) -> ContainerSettings:
    return ContainerSettings(images={"alpha": PYTHON}, user="10001:10001", tmp="16m", **changes)


def run(*command, runner=None, on_line=None, **changes):
    lines: list[str] = []
    runner = runner or ContainerRunner(settings(**changes))
    runner.run(
        root="alpha",
        workdir="models",
        command=command,
        environ={"DATA_DIR": "/data", "AIRFLOW__API__SECRET_KEY": "x"},
        additions={"ADDED": "1"},
        on_line=on_line or lines.append,
    )
    return lines


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    left = connect().containers.list(all=True, filters={"label": "mlops.root-command=alpha"})
    assert left == []


def test_lines_come_as_they_are_printed_from_both_streams():
    code = (
        "import sys, time\n"
        "print('one', flush=True); time.sleep(1); print('two', file=sys.stderr, flush=True)\n"
        "time.sleep(1); print('three')"
    )
    moments: list[tuple[str, float]] = []
    run("python3", "-c", code, on_line=lambda line: moments.append((line, time.monotonic())))
    assert [line for line, _ in moments] == ["one", "two", "three"]
    assert moments[2][1] - moments[0][1] > 1.5


def test_a_task_is_nobody_and_writes_nowhere_but_in_tmp():
    code = (
        "import os, pathlib\n"
        "print(os.getuid(), os.getcwd(), os.environ['ADDED'], 'AIRFLOW__API__SECRET_KEY' in os.environ)\n"
        "pathlib.Path('/tmp/x').write_text('x')\n"
        "print([l for l in open('/proc/self/status') if l.startswith('CapEff')][0].split()[1])\n"
        "pathlib.Path('/app/x').write_text('x')"
    )
    lines: list[str] = []
    with pytest.raises(CommandFailedError, match="Read-only file system"):
        run("python3", "-c", code, on_line=lines.append)
    assert lines[:2] == ["10001 /app/models 1 False", "0000000000000000"]


def test_the_exit_code_is_the_commands():
    with pytest.raises(CommandFailedError, match="exited with 3"):
        run("sh", "-c", "echo before; exit 3")


def test_a_task_that_takes_too_much_memory_is_ended_and_told():
    with pytest.raises(CommandFailedError, match="more memory than 64m"):
        run("python3", "-c", "x = bytearray(300_000_000)", memory="64m")


def test_stop_ends_a_command_that_would_run_on():
    runner = ContainerRunner(settings(), grace_seconds=2)
    began = time.monotonic()
    threading.Timer(2, runner.stop).start()
    with pytest.raises(CommandFailedError, match="was killed by"):
        run("sh", "-c", "echo working; sleep 60", runner=runner)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        (["no-such-program"], {}),
        (["true"], {"network": "no-such-network"}),
        (["true"], {"version": "none", "images": {"alpha": "mlops/no-such-image"}}),
    ],
)
def test_what_is_not_there_can_not_be_mended_by_a_retry(command, changes):
    given = {"images": {"alpha": PYTHON}, "user": "10001:10001"} | changes
    with pytest.raises(NotSetUpError):
        run(*command, runner=ContainerRunner(ContainerSettings(**given)))
