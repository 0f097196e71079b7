from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from local_stack import processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEP, env={**os.environ, processes.OWNER_VARIABLE: "unit-test:child"})
    yield process
    process.kill()
    process.wait()


def record_of(pid: int) -> processes.ProcessRecord:
    mark = processes.start_mark(pid)
    assert mark
    return processes.ProcessRecord(pid, mark, time.time(), "")


def test_a_running_process_is_found_by_its_record(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    processes.save(tmp_path / "child.json", record_of(child.pid))
    record = processes.load(tmp_path / "child.json")
    assert record
    found = processes.find(record)
    assert found
    assert found.pid == child.pid


def test_a_process_with_the_same_id_and_another_start_is_not_ours(child: subprocess.Popen[bytes]) -> None:
    record = record_of(child.pid)
    assert processes.find(replace(record, start_mark=record.start_mark + "1")) is None


def test_start_marks_of_processes_that_start_apart_differ(child: subprocess.Popen[bytes]) -> None:
    assert processes.start_mark(child.pid) == processes.start_mark(child.pid)
    assert processes.start_mark(child.pid) != processes.start_mark(os.getppid())


def test_an_ended_process_is_not_found_even_as_a_zombie(child: subprocess.Popen[bytes]) -> None:
    record = record_of(child.pid)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert processes.find(record) is None
    child.wait()
    assert processes.find(record) is None


def test_there_is_no_record_without_a_file(tmp_path: Path) -> None:
    assert processes.load(tmp_path / "none.json") is None


def test_a_marked_process_is_found_without_its_record(child: subprocess.Popen[bytes]) -> None:
    assert [process.pid for process in processes.owned_by("unit-test:child")] == [child.pid]
    assert processes.owned_by("unit-test:other") == []


def test_a_helper_without_a_mark_is_found_by_program_and_folder(tmp_path: Path) -> None:
    helper = subprocess.Popen(["sleep", "60"], cwd=tmp_path, env={})
    try:
        assert [process.pid for process in processes.owned_by("nobody", "sleep", tmp_path)] == [helper.pid]
        assert processes.owned_by("nobody", "other", tmp_path) == []
        assert processes.owned_by("nobody", "sleep", tmp_path / "other") == []
    finally:
        helper.kill()
        helper.wait()


def test_waiting_returns_those_that_do_not_end(child: subprocess.Popen[bytes]) -> None:
    process = psutil.Process(child.pid)
    assert processes.wait_ended([process], 0.1) == [process]
    processes.send([process], signal.SIGTERM)
    assert processes.wait_ended([process], 5) == []


def test_memory_of_processes_is_summed_and_an_ended_one_counts_nothing(
    child: subprocess.Popen[bytes],
) -> None:
    process = psutil.Process(child.pid)
    own = processes.memory_bytes([psutil.Process()])
    assert own > 10_000_000
    assert processes.memory_bytes([psutil.Process(), process]) > own
    child.kill()
    child.wait()
    assert processes.memory_bytes([process]) == 0


def test_a_process_is_not_ended_while_one_of_its_threads_still_ends(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = psutil.Process(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    monkeypatch.setattr(
        os, "waitpid", lambda pid, options: (0, 0)
    )  # as if another's child: it stays a zombie
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda path: ["1", "2"])
        assert processes.wait_ended([process], 0.1) == [process]
    assert processes.wait_ended([process], 5) == []
