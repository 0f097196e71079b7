"""A write-ahead spool: append-only segment files that outlive a crash of the process.

A frame is length, CRC-32 and payload; frames that come together are written by one `write`. Reading a
segment ends at the first frame that is cut off or altered: what follows was never acknowledged. A folder
belongs to one process at a time, by a lock that the kernel releases when the process ends; what an ended
process left in a neighbouring folder is adopted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from common_service_libs.errors import SpoolUnavailable

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<II")
SEGMENT_BYTES = 8 << 20
MAX_SLOTS = 64


class Position(NamedTuple):
    """Where a payload stands."""

    segment: int
    offset: int
    length: int


class Spool:
    """Segment files in a folder of this process's own; not thread-safe."""

    def __init__(self, folder: Path, *, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._folder, self._lock = _claim(folder)
        self._files: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        for path in sorted(self._folder.glob("*.wal")):
            number = int(path.stem)
            self._files[number] = os.open(path, os.O_RDONLY)
            self._sizes[number] = path.stat().st_size
        self._active = max(self._files, default=0)
        self._damaged = False
        self._begin_segment()

    @property
    def folder(self) -> Path:
        """The folder that is this process's own."""
        return self._folder

    @property
    def size_bytes(self) -> int:
        """What the segments hold together."""
        return sum(self._sizes.values())

    @property
    def full(self) -> bool:
        """Whether the next append would be refused."""
        return self.size_bytes >= self._max_bytes

    @property
    def active_segment(self) -> int:
        """The segment that is appended to."""
        return self._active

    def append(self, *payloads: bytes) -> list[Position]:
        """Write payloads at once; raises SpoolUnavailable, with none written, if spool or disk are full."""
        if self.full:
            raise SpoolUnavailable("the spool of decisions is full")
        try:
            if self._damaged or self._sizes[self._active] >= self._segment_bytes:
                self._begin_segment()
        except OSError as error:
            raise SpoolUnavailable(f"the spool of decisions cannot be written: {error.strerror}") from None
        start, descriptor = self._sizes[self._active], self._files[self._active]
        parts: list[bytes] = []
        positions, at = [], start
        for payload in payloads:
            parts += _HEADER.pack(len(payload), zlib.crc32(payload)), payload
            positions.append(Position(self._active, at + _HEADER.size, len(payload)))
            at += _HEADER.size + len(payload)
        try:
            written = os.write(descriptor, b"".join(parts))
        except OSError as error:
            raise SpoolUnavailable(f"the spool of decisions cannot be written: {error.strerror}") from None
        if start + written != at:
            self._take_back(descriptor, start)
            raise SpoolUnavailable("the spool of decisions cannot be written: the disk is full")
        self._sizes[self._active] = at
        return positions

    def _take_back(self, descriptor: int, start: int) -> None:
        """Remove frames that were cut off; if even that fails, nothing is appended behind it any more."""
        try:
            os.ftruncate(descriptor, start)
        except OSError as error:
            self._damaged = True
            logger.error("a segment of the spool is given up", extra={"reason": error.strerror})

    def read(self, position: Position) -> bytes:
        """Return the payload at `position`."""
        return os.pread(self._files[position.segment], position.length, position.offset)

    def recover(self) -> Iterator[tuple[Position, bytes]]:
        """Yield what the segments held when this spool was opened, oldest first."""
        for segment in sorted(self._files):
            if segment == self._active:
                continue
            at = 0
            while (payload := self._frame(segment, at)) is not None:
                yield Position(segment, at + _HEADER.size, len(payload)), payload
                at += _HEADER.size + len(payload)
            if at != self._sizes[segment]:
                logger.warning(
                    "the spool ends in a frame that was not finished",
                    extra={"segment": segment, "bytes_dropped": self._sizes[segment] - at},
                )

    def _frame(self, segment: int, at: int) -> bytes | None:
        header = os.pread(self._files[segment], _HEADER.size, at)
        if len(header) < _HEADER.size:
            return None
        length, checksum = _HEADER.unpack(header)
        if at + _HEADER.size + length > self._sizes[segment]:
            return None
        payload = os.pread(self._files[segment], length, at + _HEADER.size)
        return payload if len(payload) == length and zlib.crc32(payload) == checksum else None

    def release(self, segment: int) -> None:
        """Delete a segment whose payloads have all reached their destination; the active one is emptied."""
        if segment == self._active:
            if self._sizes[segment]:
                os.ftruncate(self._files[segment], 0)
                self._sizes[segment] = 0
            return
        os.close(self._files.pop(segment))
        del self._sizes[segment]
        self._path(segment).unlink()

    def syncer(self) -> Callable[[], None]:
        """Return a function that brings what was appended so far to the disk; it may run in a thread."""
        descriptor = os.dup(self._files[self._active])

        def sync() -> None:
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

        return sync

    def close(self) -> None:
        """Close the files and give the folder up; an empty spool leaves none."""
        for segment, descriptor in self._files.items():
            os.close(descriptor)
            if not self._sizes[segment]:
                self._path(segment).unlink()
        self._files.clear()
        os.close(self._lock)

    def _begin_segment(self) -> None:
        """Append to a new file from now on; an OSError leaves everything as it was."""
        if self._active in self._files:
            os.fdatasync(self._files[self._active])
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_EXCL
        self._files[self._active + 1] = os.open(self._path(self._active + 1), flags, 0o600)
        self._active += 1
        self._sizes[self._active] = 0
        self._damaged = False
        # Without its entry in the folder, what is synced into the file could not be found after a power cut.
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:010d}.wal"


def _claim(folder: Path) -> tuple[Path, int]:
    """Lock the first free slot under `folder` and move the segments of every other free slot into it."""
    own: Path | None = None
    own_lock = -1
    for number in range(MAX_SLOTS):
        slot = folder / f"slot-{number:02d}"
        if own is not None and not slot.is_dir():
            continue
        slot.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(slot / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if own is None:
            own, own_lock = slot, lock
            continue
        _adopt(slot, own)
        os.close(lock)
    if own is None:
        raise SpoolUnavailable(f"{MAX_SLOTS} processes use the spool already")
    return own, own_lock


def _adopt(abandoned: Path, own: Path) -> None:
    last = max((int(path.stem) for path in own.glob("*.wal")), default=0)
    for number, path in enumerate(sorted(abandoned.glob("*.wal")), start=last + 1):
        path.rename(own / f"{number:010d}.wal")
