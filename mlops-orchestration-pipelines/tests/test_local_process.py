"""How a command of another root is run on this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.local_process import (
    CommandFailedError,
    Layout,
    LocalProcessRunner,
    NotSetUpError,
    child_environment,
    expand,
)


@pytest.fixture
def layout(tmp_path):
    """A repository with one root, `alpha`, whose interpreter is this one."""
    bin_dir = tmp_path / ".local" / "venvs" / "alpha" / "bin"
    bin_dir.mkdir(parents=True)
    (bin_dir / "python").symlink_to(sys.executable)
    (tmp_path / "alpha" / "models").mkdir(parents=True)
    return Layout.from_environment({"MLOPS_REPOSITORY": str(tmp_path)}, Path("/nowhere"))


def run(layout, *command, environ=None, workdir="", **runner):
    lines: list[str] = []
    LocalProcessRunner(layout, **runner).run(
        root="alpha",
        workdir=workdir,
        command=command,
        environ={"PATH": os.environ["PATH"]} if environ is None else environ,
        additions={},
        on_line=lines.append,
    )
    return lines


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_python_is_the_roots_interpreter_in_the_roots_folder(layout):
    code = "import os, sys; print(sys.executable); print(os.getcwd()); print(os.environ['PYTHONPATH'])"
    assert run(layout, "python", "-c", code, workdir="models") == [
        str(layout.venv("alpha") / "bin" / "python"),
        str(layout.repository / "alpha" / "models"),
        str(layout.repository / "alpha"),
    ]


def test_a_script_finds_the_roots_python_first(layout):
    script = layout.repository / "alpha" / "which.sh"
    script.write_text("#!/bin/sh\ncommand -v python\necho $VENV\n")
    script.chmod(0o755)
    venv = layout.venv("alpha")
    assert run(layout, "./which.sh") == [str(venv / "bin" / "python"), str(venv)]


def test_the_orchestrators_own_settings_stay_with_it(layout):
    environ = {
        "PATH": os.environ["PATH"],
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql+psycopg2://airflow:secret@h/airflow",
        "AIRFLOW_HOME": "/a",
        "AIRFLOW_CTX_DAG_ID": "d",
        "__AIRFLOW_SUPERVISOR_FD": "7",
        "PYTHONPATH": "/orchestrators-own",
        "PYTHONHOME": "/other",
        "DECISIONS_DB_PASSWORD": "for the command",
    }
    lines = run(
        layout,
        "python",
        "-c",
        "import os; [print(f'{k}={v}') for k, v in os.environ.items()]",
        environ=environ,
    )
    assert "DECISIONS_DB_PASSWORD=for the command" in lines
    assert not [
        line for line in lines if "AIRFLOW" in line or "secret" in line or "/orchestrators-own" in line
    ]
    assert not [line for line in lines if line.startswith("PYTHONHOME")]


def test_a_failure_says_the_code_and_the_last_lines(layout):
    code = "print('first'); import sys; print('no such day', file=sys.stderr); sys.exit(3)"
    with pytest.raises(CommandFailedError, match=r"(?s)exited with 3.*first\n.*no such day"):
        run(layout, "python", "-c", code)


def test_a_crash_names_the_signal(layout):
    with pytest.raises(CommandFailedError, match="killed by SIGKILL"):
        run(layout, "python", "-c", "import os; os.kill(os.getpid(), 9)")


def test_an_argument_is_never_read_by_a_shell(layout):
    text = "$(touch owned); `id` && '\"* ;"
    assert run(layout, "python", "-c", "import sys; print(sys.argv[1])", text) == [text]


def test_a_missing_setting_environment_folder_or_program_is_named(layout, tmp_path):
    with pytest.raises(NotSetUpError, match="DATA_DIR"):
        run(layout, "python", "${DATA_DIR}/x")
    with pytest.raises(NotSetUpError, match="no folder"):
        run(layout, "python", workdir="nowhere")
    with pytest.raises(NotSetUpError, match="no executable"):
        run(layout, "scripts/none.sh")
    with pytest.raises(NotSetUpError, match="make setup"):
        run(Layout(tmp_path, tmp_path / "empty"), "python")


def test_what_a_command_leaves_behind_ends_with_it(layout):
    code = (
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    )
    start = time.monotonic()
    (pid,) = run(layout, "python", "-c", code)
    assert time.monotonic() - start < 10, "it waited for a process that holds the pipe"
    assert gone(int(pid))


def test_stop_ends_the_whole_group_even_if_it_ignores_the_request(layout):
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    pids: list[int] = []
    runner = LocalProcessRunner(layout, grace_seconds=0.3)

    def interrupted(_number, _frame):
        raise TimeoutError("the task's time is up")

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        with pytest.raises(TimeoutError):
            runner.run(
                root="alpha",
                workdir="",
                command=["python", "-c", code],
                environ=os.environ,
                additions={},
                on_line=lambda line: pids.append(int(line)),
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(pids) == 1
    assert gone(pids[0])


def test_stop_from_another_thread_fails_the_command(layout):
    runner = LocalProcessRunner(layout)
    with pytest.raises(CommandFailedError, match="SIGTERM"):
        runner.run(
            root="alpha",
            workdir="",
            command=["python", "-c", "print('up', flush=True); import time; time.sleep(60)"],
            environ=os.environ,
            additions={},
            on_line=lambda _: threading.Timer(0.1, runner.stop).start(),
        )


def test_lines_survive_odd_bytes_progress_bars_and_great_length(layout):
    code = (
        "import sys; w = sys.stdout.buffer.write\n"
        "w(b'10 %\\r20 %\\r\\n'); w(b'\\xff\\xc3\\xa9\\n\\n'); w(b'x' * 20000); w(b'\\nend')"
    )
    lines = run(layout, "python", "-c", code)
    assert lines[:3] == ["10 %", "20 %", "\ufffd\xe9"]
    assert lines[-1] == "end"
    assert max(map(len, lines)) <= 4000


names = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1, max_size=12)
environments = st.dictionaries(names, st.text("abc${}", max_size=5), max_size=6)


@given(environments, environments)
def test_a_childs_environment_keeps_settings_and_additions_win(environ, additions):
    child = child_environment(environ, Layout(Path("/r"), Path("/l")), "alpha", additions)
    assert all(child[name] == value for name, value in additions.items())
    assert not [name for name in child if "AIRFLOW" in name and name not in additions]


@given(st.text("abc$ {", max_size=20), st.text("abc$ }", max_size=5))
def test_text_without_a_setting_is_left_as_it_is_and_a_value_is_not_expanded_again(text, value):
    assert expand(text, {}) == text
    assert expand("${A}" + text, {"A": "${" + value}) == "${" + value + text
