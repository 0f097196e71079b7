"""How much memory a run took at its peak, and how long its stages lasted."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

import psutil

from local_stack import processes
from local_stack.instance import Instance

INTERVAL_SECONDS = 0.5


class PeakMemory:
    """Samples, while its `with` block runs, the memory of this process, the stack and all their children.

    Memory is PSS (shared pages counted once) where the kernel tells it, RSS elsewhere. `peak_mb` is the
    highest sum seen, in MB of 10^6 bytes; what lives shorter than the interval can be missed.
    """

    def __init__(self, instance: Instance | None = None, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._instance = instance
        self._interval = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._peak = 0

    @property
    def peak_mb(self) -> float:
        """The highest sum so far."""
        return self._peak / 1e6

    def sample(self) -> int:
        """Measure once, in bytes."""
        members = {process.pid: process for root in self._roots() for process in processes.tree(root)}
        used = processes.memory_bytes(members.values())
        self._peak = max(self._peak, used)
        return used

    def _roots(self) -> Iterable[psutil.Process]:
        yield psutil.Process(os.getpid())
        if self._instance is None:
            return
        for path in self._instance.run_dir.glob("*.json"):
            record = processes.load(path)
            process = processes.find(record) if record else None
            if process:
                yield process

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()

    def __enter__(self) -> PeakMemory:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()


class StageTimer:
    """Measures named stages; `seconds` holds them in the order they ended, repeated names summed."""

    def __init__(
        self, say: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._say = say
        self._clock = clock

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside; a stage that fails is measured too."""
        if self._say:
            self._say(f"== {name}")
        began = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - began
