from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable

import psutil
import pytest

from local_stack import health, processes
from local_stack.instance import Instance
from local_stack.services import Service
from local_stack.supervisor import ServiceFailedError, Supervisor
from tests.stack.conftest import ECHO_SERVER

Make = Callable[..., Service]
Supervise = Callable[..., Supervisor]

WITH_CHILD = (
    """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
"""
    + ECHO_SERVER
)
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ECHO_SERVER
CRASHING = "import sys; print('disk is full'); sys.exit(3)"


def states(supervisor: Supervisor) -> dict[str, str]:
    return {state.name: state.state for state in supervisor.status()}


def has_ended(process: psutil.Process) -> bool:
    """An orphan can be a zombie for a while: whoever adopted it decides when it is waited for."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def running_pid(supervisor: Supervisor, name: str = "echo") -> int:
    process = supervisor.process(name)
    assert process
    return process.pid


def test_a_service_is_started_found_healthy_and_stopped(supervise: Supervise, make_service: Make) -> None:
    supervisor = supervise(make_service())
    assert states(supervisor) == {"echo": "stopped"}
    supervisor.up(["echo"])
    pid = running_pid(supervisor)
    assert states(supervisor) == {"echo": "running"}
    assert supervisor.down() == ["echo"]
    assert states(supervisor) == {"echo": "stopped"}
    assert not psutil.pid_exists(pid)
    assert supervisor.down() == []


def test_a_second_up_leaves_a_running_service_alone(supervise: Supervise, make_service: Make) -> None:
    supervisor = supervise(make_service())
    supervisor.up(["echo"])
    pid = running_pid(supervisor)
    supervise(make_service()).up(["echo"])
    assert running_pid(supervisor) == pid


def test_changed_settings_restart_a_running_service(supervise: Supervise, make_service: Make) -> None:
    supervisor = supervise(make_service())
    supervisor.up(["echo"])
    pid = running_pid(supervisor)
    supervise(make_service(env={"NEW": "1"})).up(["echo"])
    assert running_pid(supervisor) != pid
    assert not psutil.pid_exists(pid)


def test_a_crash_at_start_is_reported_by_name_with_code_and_last_log_lines(
    supervise: Supervise, make_service: Make
) -> None:
    with pytest.raises(ServiceFailedError, match=r"(?s)broken: ended at start with code 3.*disk is full"):
        supervise(make_service("broken", CRASHING)).up(["broken"])


def test_a_program_that_is_missing_is_reported_by_name(supervise: Supervise, make_service: Make) -> None:
    service = make_service("absent", command=lambda: ["/nonexistent/program"])
    with pytest.raises(ServiceFailedError, match=r"absent: can't be started: .*No such file"):
        supervise(service).up(["absent"])


def test_what_was_healthy_keeps_running_when_another_fails(supervise: Supervise, make_service: Make) -> None:
    supervisor = supervise(make_service(), make_service("broken", CRASHING, needs=("echo",)))
    with pytest.raises(ServiceFailedError):
        supervisor.up(["echo", "broken"])
    assert states(supervisor) == {"echo": "running", "broken": "dead"}


def test_a_service_that_never_answers_is_stopped_after_its_deadline(
    supervise: Supervise, make_service: Make
) -> None:
    silent = make_service("silent", "import time; time.sleep(60)", start_seconds=0.3)
    supervisor = supervise(silent)
    with pytest.raises(ServiceFailedError, match=r"silent: did not answer in 0 s"):
        supervisor.up(["silent"])
    assert states(supervisor) == {"silent": "stopped"}
    assert supervisor.members("silent") == []


def test_refused_credentials_fail_at_once(supervise: Supervise, make_service: Make) -> None:
    def refuse() -> None:
        raise health.RefusedError("other secrets")

    supervisor = supervise(make_service(check=refuse, start_seconds=60))
    with pytest.raises(ServiceFailedError, match="echo: other secrets"):
        supervisor.up(["echo"])
    assert supervisor.process("echo") is None


def test_an_answer_from_another_program_on_the_port_does_not_count(
    supervise: Supervise, make_service: Make
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        port = foreign.getsockname()[1]
        impostor = make_service(
            "slow", "import time; time.sleep(60)", port, check=lambda: None, start_seconds=0.3
        )
        with pytest.raises(ServiceFailedError, match=f"another program answers on port {port}"):
            supervise(impostor).up(["slow"])


def test_a_killed_service_is_dead_until_it_is_started_again(supervise: Supervise, make_service: Make) -> None:
    supervisor = supervise(make_service())
    supervisor.up(["echo"])
    assert supervisor.kill("echo")
    assert states(supervisor) == {"echo": "dead"}
    assert not supervisor.kill("echo")
    supervisor.up(["echo"])
    assert states(supervisor) == {"echo": "running"}


def test_a_service_that_does_not_answer_is_unhealthy(supervise: Supervise, make_service: Make) -> None:
    supervisor = supervise(make_service())
    supervisor.up(["echo"])
    os.kill(running_pid(supervisor), signal.SIGSTOP)
    assert states(supervisor) == {"echo": "unhealthy"}
    os.kill(running_pid(supervisor), signal.SIGCONT)


def test_children_end_with_their_service(supervise: Supervise, make_service: Make) -> None:
    supervisor = supervise(make_service(program=WITH_CHILD))
    supervisor.up(["echo"])
    (child,) = psutil.Process(running_pid(supervisor)).children()
    supervisor.down()
    assert has_ended(child)


def test_children_that_lost_their_parent_end_with_the_next_start(
    supervise: Supervise, make_service: Make
) -> None:
    supervisor = supervise(make_service(program=WITH_CHILD))
    supervisor.up(["echo"])
    process = psutil.Process(running_pid(supervisor))
    (child,) = process.children()
    process.kill()
    process.wait()
    assert child.is_running()
    supervisor.up(["echo"])
    assert has_ended(child)


def test_a_service_deaf_to_the_polite_signal_is_killed(supervise: Supervise, make_service: Make) -> None:
    supervisor = supervise(make_service(program=DEAF, stop_seconds=0.3))
    supervisor.up(["echo"])
    pid = running_pid(supervisor)
    assert supervisor.down() == ["echo"]
    assert not psutil.pid_exists(pid)


def test_a_service_whose_state_was_removed_by_hand_is_stopped_by_its_mark(
    supervise: Supervise, make_service: Make, instance: Instance
) -> None:
    supervisor = supervise(make_service())
    supervisor.up(["echo"])
    (process,) = supervisor.members("echo")
    shutil.rmtree(instance.state_dir)
    assert supervisor.down() == ["echo"]
    assert has_ended(process)
    assert supervisor.down() == []


def test_a_record_whose_process_id_was_given_away_stops_nobody(
    supervise: Supervise, make_service: Make, instance: Instance
) -> None:
    supervisor = supervise(make_service())
    with subprocess.Popen(["sleep", "60"]) as stranger:
        record = processes.ProcessRecord(stranger.pid, "an older boot 1", 0.0, "")
        processes.save(instance.run_dir / "echo.json", record)
        assert states(supervisor) == {"echo": "dead"}
        assert supervisor.down() == []
        assert stranger.poll() is None
        stranger.kill()


def test_services_start_after_what_they_need_and_stop_before_it(
    supervise: Supervise, make_service: Make
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        second_port = probe.getsockname()[1]
    order: list[str] = []
    first = make_service("first", prepare=lambda: order.append("start first"))
    second = make_service(
        "second", port=second_port, needs=("first",), prepare=lambda: order.append("start second")
    )
    first_ready = make_service(
        "first", prepare=first.prepare, after_ready=lambda: order.append("first ready")
    )
    supervisor = supervise(second, first_ready)
    supervisor.up(["second", "first"])
    assert order == ["start first", "first ready", "start second"]
    assert supervisor.down() == ["second", "first"]


def test_a_long_log_is_set_aside_at_start(
    supervise: Supervise, make_service: Make, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_stack.supervisor.LOG_LIMIT_BYTES", 10)
    instance.log_file("echo").write_text("many old lines\n")
    supervise(make_service()).up(["echo"])
    assert instance.log_file("echo").with_suffix(".log.1").read_text() == "many old lines\n"
    assert "many old lines" not in instance.log_file("echo").read_text()


def test_a_service_sees_its_own_settings_and_not_the_callers(
    supervise: Supervise, make_service: Make, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLERS_SECRET", "x")
    program = "import os; print(sorted(os.environ), flush=True)\n" + ECHO_SERVER
    supervise(make_service(program=program, env={"OWN": "1"})).up(["echo"])
    log = instance.log_file("echo").read_text()
    assert "'OWN'" in log
    assert "CALLERS_SECRET" not in log
