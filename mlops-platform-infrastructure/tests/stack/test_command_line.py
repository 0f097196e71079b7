from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from local_stack import __main__ as command_line
from local_stack import settings
from local_stack.instance import Instance

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LOCAL_DIR", str(tmp_path))

    def call(*arguments: str) -> int:
        return command_line.main(["--instance", "unit", *arguments])

    return call


def run_exec(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`exec` becomes its command, so it needs a process of its own."""
    words = [sys.executable, "-m", "local_stack", "--instance", "unit", "exec", "--", *command]
    environment = {**os.environ, "LOCAL_DIR": str(tmp_path)}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def configured(instance: Instance) -> Instance:
    command_line.configure(instance)
    return instance


@pytest.mark.parametrize("words", [["status"], ["env"], ["exec", "--", "true"], ["logs"], ["stop", "s3"]])
def test_a_command_before_the_first_up_says_what_to_do(run: Run, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="local_stack up"):
        run(*words)


def test_down_of_nothing_is_no_error(run: Run) -> None:
    assert run("down") == 0


def test_configuring_twice_changes_nothing_and_every_secret_file_is_private(configured: Instance) -> None:
    files = [
        configured.env_file,
        *(configured.state_dir / name for name in ("secrets.json", "api_keys.json")),
    ]
    before = [path.read_text() for path in files]
    command_line.configure(configured)
    assert [path.read_text() for path in files] == before
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(configured.state_dir.stat().st_mode) == 0o700


def test_exec_runs_with_the_settings_and_passes_the_exit_code(tmp_path: Path, configured: Instance) -> None:
    done = run_exec(tmp_path, "sh", "-c", 'printf %s "$REDIS_PASSWORD"; exit 7')
    assert done.returncode == 7
    assert done.stdout == settings.read(configured.env_file)["REDIS_PASSWORD"] != ""


def test_exec_keeps_what_the_caller_reaches_without_a_proxy(
    tmp_path: Path, configured: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "index.example")
    done = run_exec(tmp_path, "sh", "-c", "printf %s $NO_PROXY")
    assert done.stdout == "index.example,127.0.0.1,localhost"


def test_exec_of_a_missing_program_says_so(tmp_path: Path, configured: Instance) -> None:
    done = run_exec(tmp_path, "no-such-program")
    assert done.returncode == 127
    assert "no-such-program" in done.stderr


def test_env_hides_secrets_unless_asked(
    run: Run, configured: Instance, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("env") == 0
    hidden = capsys.readouterr().out
    assert run("env", "--show-secrets") == 0
    shown = capsys.readouterr().out
    assert settings.parse(shown) == settings.read(configured.env_file)
    assert settings.parse(shown)["REDIS_PASSWORD"] not in hidden
    assert settings.parse(hidden)["REDIS_HOST"] == "127.0.0.1"


def test_an_unknown_service_is_refused_with_the_known_ones(run: Run, configured: Instance) -> None:
    with pytest.raises(SystemExit, match=r"oracle.*postgres"):
        run("start", "oracle")


def test_status_of_a_configured_instance_shows_every_service_stopped(
    run: Run, configured: Instance, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("status", "--json") == 0
    states = {entry["name"]: entry["state"] for entry in json.loads(capsys.readouterr().out)}
    assert set(states.values()) == {"stopped"}
    assert {
        "postgres",
        "valkey",
        "s3",
        "broker",
        "mlflow",
        "schema-registry",
        "fraud-api",
        "churn-api",
        "recommendation-api",
        "decision-page",
    } == set(states)


def test_a_service_is_started_with_what_it_needs(configured: Instance) -> None:
    services = command_line.existing(configured).services
    assert command_line.with_needs(services, "valkey") == ["valkey"]
    assert command_line.with_needs(services, "broker") == ["s3", "broker"]
    assert command_line.with_needs(services, "fraud-api") == ["postgres", "valkey", "mlflow", "fraud-api"]


@pytest.mark.parametrize(("answer", "kept"), [("", True), ("no", True), ("y", False), ("YES", False)])
def test_reset_asks_and_keeps_everything_without_a_yes(
    run: Run, configured: Instance, monkeypatch: pytest.MonkeyPatch, answer: str, kept: bool
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert run("reset") == int(kept)
    assert configured.env_file.exists() == kept


def test_reset_without_a_terminal_keeps_everything(
    run: Run, configured: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_terminal(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", no_terminal)
    assert run("reset") == 1
    assert configured.env_file.exists()


def test_a_second_command_waits_for_the_first(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from local_stack.__main__ import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('in', flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    with _piped(command) as first:
        assert first.stdout
        assert first.stdout.readline() == "in\n"
        with _piped(command) as second:
            assert second.stdout
            assert "waiting" in second.stdout.readline()
            first.communicate("go\n")
            assert second.communicate("go\n")[0] == "in\n"


def _piped(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
