from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local_stack import postgres

GIB = 1024**3


def megabytes(value: str) -> int:
    number, unit = int(value[:-2]), value[-2:]
    return number * {"MB": 1, "GB": 1024}[unit]


@pytest.mark.parametrize("memory", [GIB // 2, 2 * GIB, 8 * GIB, 24 * GIB, 512 * GIB])
def test_memory_settings_stay_within_the_machine_and_their_caps(memory: int) -> None:
    tuned = postgres.tuning(memory, cpus=2)
    shared, work = megabytes(tuned["shared_buffers"]), megabytes(tuned["work_mem"])
    assert 64 <= shared <= 512
    assert 8 <= work <= 64
    assert shared + 8 * work + 2 * megabytes(tuned["maintenance_work_mem"]) < memory // postgres.MIB


def test_a_larger_machine_never_gets_less() -> None:
    small, large = postgres.tuning(4 * GIB, 2), postgres.tuning(24 * GIB, 8)
    for name in ("shared_buffers", "work_mem", "maintenance_work_mem", "effective_cache_size"):
        assert megabytes(small[name]) <= megabytes(large[name])
    assert int(small["max_parallel_workers"]) <= int(large["max_parallel_workers"])


def test_durability_and_the_loopback_are_not_given_up() -> None:
    tuned = postgres.tuning(24 * GIB, 2)
    assert tuned["synchronous_commit"] == "on"
    assert not {"fsync", "full_page_writes"} & set(tuned)
    assert tuned["listen_addresses"] == "127.0.0.1"
    assert tuned["unix_socket_directories"] == ""
    assert tuned["password_encryption"] == "scram-sha-256"


def test_a_pid_file_whose_id_belongs_to_another_program_is_removed(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n")
    postgres._remove_stale_pid_file(tmp_path)
    assert not (tmp_path / "postmaster.pid").exists()


def test_the_pid_file_of_a_server_that_works_in_the_folder_is_left(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=tmp_path) as server:
        (tmp_path / "postmaster.pid").write_text(f"{server.pid}\n")
        postgres._remove_stale_pid_file(tmp_path)
        assert (tmp_path / "postmaster.pid").exists()
        server.kill()


def test_the_pid_file_of_a_killed_server_that_nobody_waited_for_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as server:
        server.kill()
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        (tmp_path / "postmaster.pid").write_text(f"{server.pid}\n")
        postgres._remove_stale_pid_file(tmp_path)
        assert not (tmp_path / "postmaster.pid").exists()


def test_no_pid_file_is_no_error(tmp_path: Path) -> None:
    postgres._remove_stale_pid_file(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_root_without_a_way_to_lower_itself_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(postgres, "_works", lambda prefix: False)
    with pytest.raises(postgres.PostgresError, match="run as an ordinary user"):
        postgres.unprivileged_prefix()


def test_an_ordinary_user_needs_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert postgres.unprivileged_prefix() == []
