"""Several workers behind one port: processes that share nothing but it, and one that watches over them.

Each worker has a socket of its own on the port (SO_REUSEPORT), so that the kernel spreads the connections. A
worker that ends by itself is started again. Signals go to all of them; the end of the last one is the end of
the service.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

logger = logging.getLogger(__name__)

SHORT_LIFE_SECONDS = 5.0
PAUSE_SECONDS = 1.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def own_socket(host: str, port: int) -> socket.socket:
    """Return a worker's own socket on the shared port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind((host, port))
    return found


def require_free(host: str, port: int) -> None:
    """Raise OSError if somebody serves on the port: workers of two services would share it unnoticed."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


class Supervisor:
    """Runs `work` in `count` processes until a signal ends them.

    `ended` hears of each process that is over. To be made before any thread or event loop is.
    """

    def __init__(
        self, count: int, work: Callable[[], None], *, ended: Callable[[int], None] = lambda pid: None
    ) -> None:
        self._count = count
        self._work = work
        self._ended = ended
        self._started: dict[int, float] = {}
        self._stopping = False
        self._settled = False

    def run(self) -> int:
        """Return the exit code of the service: 0 if it was ended by a signal and every worker ended well."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        for _ in range(self._count):
            self._start()
        code = 0
        while self._started:
            pid, status = os.waitpid(-1, 0)
            lived = time.monotonic() - self._started.pop(pid)
            ended = os.waitstatus_to_exitcode(status)
            self._ended(pid)
            self._settled = self._settled or lived > SHORT_LIFE_SECONDS
            if self._stopping:
                code = code or int(ended != 0)
            elif not self._settled:  # they cannot start: what is wrong has been said
                code = 1
                self._pass_on(signal.SIGTERM, None)
            else:
                logger.error("a worker ended and is started again", extra={"worker": pid, "code": ended})
                if lived < SHORT_LIFE_SECONDS:
                    time.sleep(PAUSE_SECONDS)
                if not self._stopping:
                    self._start()
        return code

    def _start(self) -> None:
        pid = os.fork()
        if pid == 0:
            _be_worker(self._work)
        self._started[pid] = time.monotonic()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for pid in self._started:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _be_worker(work: Callable[[], None]) -> None:
    """Do the work in this process, which was just forked, and end it."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        _end_with_parent()
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # whatever it is ends this process, not the supervisor's stack above it
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        if os.getppid() == 1 and os.getpgrp() != 1:
            sys.exit("the supervisor has ended already")
