"""The hot snapshot: what the online store last said of the entities asked for lately, for when it is silent.

Bounded in entities and in bytes an entity; the one that was asked for longest ago makes room. Kept on the
disk too, so that a process that starts during an outage has it: frames of length, CRC-32 and MessagePack, in
a file that is replaced as a whole. Reading ends at the first frame that is cut off or altered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from common_service_libs.background import forever
from common_service_libs.feast_layout import EntityValue
from common_service_libs.online_store import SnapshotRow

logger = logging.getLogger(__name__)

MAX_ROW_BYTES = 4096
MAX_AGE_SECONDS = 86_400.0
PERSIST_SECONDS = 30.0
CLOCK_STEP_SECONDS = 60.0

Key = tuple[str, EntityValue]
_MAGIC = b"HOTSNAP1"
_HEADER = struct.Struct("<II")
_FRAME_ROWS = 256
_MAX_FRAME_BYTES = 4 << 20
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[tuple[str, int | str, float, list[bytes | None]]])


class HotSnapshot:
    """Rows by (signature of the plan, value of the key), the one used last at the end; not thread-safe."""

    def __init__(
        self,
        entities: int,
        *,
        max_age: float = MAX_AGE_SECONDS,
        max_row_bytes: int = MAX_ROW_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limit = entities
        self._max_age = max_age
        self._max_row_bytes = max_row_bytes
        self._clock = clock
        self._rows: OrderedDict[Key, SnapshotRow] = OrderedDict()
        self.changed = False

    def __len__(self) -> int:
        return len(self._rows)

    def keep(self, keys: Sequence[Key], replies: Sequence[Sequence[bytes | None]]) -> None:
        """Keep whole replies to one case, whose sizes the plan bounds."""
        rows, now = self._rows, self._clock()
        for key, reply in zip(keys, replies):  # noqa: B905 - as long, and faster
            rows[key] = (now, *reply)
            rows.move_to_end(key)
        while len(rows) > self._limit:
            rows.popitem(last=False)
        self.changed = True

    def keep_if_small(self, key: Key, reply: Sequence[bytes | None]) -> None:
        """Keep a reply of any form, unless it is larger than a row may be."""
        if sum(map(len, filter(None, reply))) <= self._max_row_bytes:
            self.keep((key,), (reply,))

    def get(self, key: Key) -> SnapshotRow | None:
        """Return the row of an entity, unless it is unknown or was read too long ago."""
        row = self._rows.get(key)
        if row is None or self._clock() - row[0] > self._max_age:
            return None
        self._rows.move_to_end(key)
        return row

    def rows(self) -> list[tuple[Key, SnapshotRow]]:
        """Return everything, the least recently used first."""
        return list(self._rows.items())

    def restore(self, rows: Iterable[tuple[Key, SnapshotRow]]) -> int:
        """Take over rows of an earlier process that are fit for use; return how many there are now."""
        now = self._clock()
        for key, row in rows:
            size = sum(map(len, filter(None, row[1:])))
            if -CLOCK_STEP_SECONDS <= now - row[0] <= self._max_age and size <= self._max_row_bytes:
                self._rows[key] = row
                while len(self._rows) > self._limit:
                    self._rows.popitem(last=False)
        return len(self._rows)


def write_rows(path: Path, rows: Sequence[tuple[Key, SnapshotRow]]) -> None:
    """Replace the file by one that holds `rows`; raises OSError, and then the old file stands."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_MAGIC)
            for at in range(0, len(rows), _FRAME_ROWS):
                part = [(key[0], key[1], row[0], row[1:]) for key, row in rows[at : at + _FRAME_ROWS]]
                payload = _encoder.encode(part)
                file.write(_HEADER.pack(len(payload), zlib.crc32(payload)) + payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_rows(path: Path) -> Iterator[tuple[Key, SnapshotRow]]:
    """Yield the rows of a file up to the first frame that is not whole; nothing if there is no such file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        if file.read(len(_MAGIC)) != _MAGIC:
            logger.warning("not a hot snapshot, and not read", extra={"file": path.name})
            return
        while header := file.read(_HEADER.size):
            part = _frame(header, file.read)
            if part is None:
                logger.warning("the hot snapshot ends in a broken frame", extra={"file": path.name})
                return
            for signature, value, moment, reply in part:
                yield (signature, value), (moment, *reply)


def _frame(header: bytes, read: Callable[[int], bytes]) -> list[Any] | None:
    if len(header) != _HEADER.size:
        return None
    length, checksum = _HEADER.unpack(header)
    if length > _MAX_FRAME_BYTES:
        return None
    payload = read(length)
    if len(payload) != length or zlib.crc32(payload) != checksum:
        return None
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError:
        return None


class SnapshotFile:
    """Keeps a snapshot on the disk: read at the start, written now and then, and at the end."""

    def __init__(self, snapshot: HotSnapshot, path: Path) -> None:
        self._snapshot = snapshot
        self._path = path
        self._writer: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Restore what an earlier process left and begin to write; a file that cannot be read is none."""
        try:
            restored = self._snapshot.restore(read_rows(self._path))
        except OSError as error:
            logger.warning("the hot snapshot cannot be read", extra={"reason": error.strerror})
        else:
            logger.info("hot snapshot restored", extra={"entities": restored})
        self._writer = asyncio.create_task(forever(self._write_often))

    async def close(self) -> None:
        """Write once more and end."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        await self.write()

    async def write(self) -> None:
        """Write if anything was read since the last time."""
        if not self._snapshot.changed:
            return
        self._snapshot.changed = False
        try:
            await asyncio.to_thread(write_rows, self._path, self._snapshot.rows())
        except OSError as error:
            self._snapshot.changed = True
            logger.warning("the hot snapshot cannot be written", extra={"reason": error.strerror})

    async def _write_often(self) -> None:
        while True:
            await asyncio.sleep(PERSIST_SECONDS)
            await self.write()
