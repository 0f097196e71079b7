"""A file that is taken over whenever its content changes, if it is good; the last good one stays otherwise.

A copy of the last good content is kept on the local disk, so that a restart with a broken file goes on where
the process before it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common_service_libs.errors import ArtifactError

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 0.05

Take = Callable[[bytes, str, str], None]


class WatchedFile:
    """One file, with the copy of its last good content at `kept`.

    `take` is given content, name of the file and hash; it raises ArtifactError for what cannot be used.
    `on_outcome` hears `installed`, `refused`, `unreadable` or `restored`.
    """

    def __init__(self, path: Path, kept: Path, *, take: Take, on_outcome: Callable[[str], None]) -> None:
        self._path = path
        self._kept = kept
        self._take = take
        self._on_outcome = on_outcome
        self._settled: str | None = None
        self._readable = True

    def kept(self) -> bytes | None:
        """Return the last good content, None if there is none."""
        try:
            return self._kept.read_bytes()
        except OSError:
            return None

    def settle(self, sha256: str) -> None:
        """Note that this content is in use already."""
        self._settled = sha256

    def retry(self) -> None:
        """Look at the content again at the next poll, also if it was refused."""
        self._settled = None

    def restore(self) -> bool:
        """Take over the last good content; return whether that was possible."""
        content = self.kept()
        if content is None:
            return False
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            self._take(content, self._path.name, sha256)
        except ArtifactError as error:
            logger.error(
                "the last good file cannot be used again",
                extra={"file": self._path.name, "sha256": sha256, "reason": str(error)},
            )
            return False
        self._on_outcome("restored")
        return True

    def poll(self) -> None:
        """Look at the file once, and take it over if its content is new and good."""
        try:
            content = self._settled_content()
        except OSError as error:
            if self._readable:
                logger.error(
                    "a file cannot be read, the last good one stays in use",
                    extra={"file": self._path.name, "reason": error.strerror},
                )
                self._on_outcome("unreadable")
            self._readable, self._settled = False, None
            return
        self._readable = True
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 == self._settled:
            return
        self._settled = sha256
        try:
            self._take(content, self._path.name, sha256)
        except ArtifactError as error:
            logger.error(
                "a file was refused, the last good one stays in use",
                extra={"file": self._path.name, "sha256": sha256, "reason": str(error)},
            )
            self._on_outcome("refused")
            return
        logger.info("a file was taken over", extra={"file": self._path.name, "sha256": sha256})
        self._on_outcome("installed")
        self.keep(content)

    def _settled_content(self) -> bytes:
        """Return the content, not of a file that is just being written: half a policy may be one too."""
        while -SETTLE_SECONDS < (age := time.time() - self._path.stat().st_mtime) < SETTLE_SECONDS:
            time.sleep(SETTLE_SECONDS - max(age, 0.0))
        return self._path.read_bytes()

    def keep(self, content: bytes) -> None:
        """Keep a copy of good content for the next start."""
        try:
            replace_file(self._kept, content)
        except OSError as error:
            logger.error(
                "the last good file cannot be kept",
                extra={"file": self._path.name, "reason": error.strerror},
            )


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file as a whole, through to the disk; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class FileWatcher:
    """Polls files in a thread of its own."""

    def __init__(self, polls: Sequence[Callable[[], None]], *, poll_seconds: float) -> None:
        self._polls = polls
        self._poll_seconds = poll_seconds
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to poll."""
        self._thread = threading.Thread(target=self._watch, name="file-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop polling."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=1)

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_seconds):
            for poll in self._polls:
                try:
                    poll()
                except Exception:
                    logger.exception("looking at a file failed and is tried again")
