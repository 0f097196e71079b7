from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from local_stack.instance import Instance
from local_stack.measure import PeakMemory, StageTimer
from local_stack.services import Service
from local_stack.supervisor import Supervisor

ALLOCATE = "import sys, time; block = bytearray(100_000_000); print('ready', flush=True); time.sleep(60)"


def test_the_peak_holds_a_childs_memory_after_it_ended() -> None:
    with PeakMemory(interval_seconds=0.02) as memory:
        before = memory.peak_mb
        with subprocess.Popen([sys.executable, "-c", ALLOCATE], stdout=subprocess.PIPE) as child:
            assert child.stdout
            child.stdout.readline()
            deadline = time.monotonic() + 5
            while memory.peak_mb < before + 90 and time.monotonic() < deadline:
                time.sleep(0.02)
            child.kill()
    assert memory.peak_mb >= before + 90
    assert memory.sample() / 1e6 < memory.peak_mb - 50


def test_the_stack_counts_although_it_is_no_child(
    instance: Instance, supervise: Callable[..., Supervisor], make_service: Callable[..., Service]
) -> None:
    supervise(make_service()).up(["echo"])
    with_stack = PeakMemory(instance)
    members = {process.pid for root in with_stack._roots() for process in [root]}
    assert len(members) == 2
    assert with_stack.sample() > 0


def test_stages_are_timed_in_order_and_repeated_names_are_summed() -> None:
    ticks = iter([0.0, 1.5, 2.0, 2.25, 10.0, 11.0])
    said: list[str] = []
    timer = StageTimer(said.append, clock=lambda: next(ticks))
    for name in ("load", "train", "load"):
        with timer.stage(name):
            pass
    assert timer.seconds == {"load": 2.5, "train": 0.25}
    assert said == ["== load", "== train", "== load"]


def test_a_stage_that_fails_is_timed_and_its_error_goes_on() -> None:
    ticks = iter([0.0, 3.0])
    timer = StageTimer(clock=lambda: next(ticks))
    with pytest.raises(KeyError), timer.stage("load"):
        raise KeyError("x")
    assert timer.seconds == {"load": 3.0}
