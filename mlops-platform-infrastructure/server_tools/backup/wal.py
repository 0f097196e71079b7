"""WAL segments: their names, whether a row of them is whole, and where its end is.

The receiver leaves complete segments and one `.partial`, each filled up with zeros to a segment's full size.
So a file of another size was cut; a hole in the names is a lost file; and after the last record of the newest
segment come zeros, or the front part of one record that was on its way (nobody was told that it is kept).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from server_tools.backup.errors import DamagedError

SEGMENT_BYTES = 16 * 1024 * 1024
PAGE_BYTES = 8192
_LONG_HEADER, _SHORT_HEADER, _SMALLEST_RECORD, _LARGEST_RECORD = 40, 24, 24, 1020 * 1024 * 1024
_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(\.partial)?")
_ERROR_AT = re.compile(r" at ([0-9A-F]+)/([0-9A-F]+)")


@dataclass(frozen=True, order=True)
class Segment:
    """A WAL segment: its timeline and its number since the beginning of the log."""

    timeline: int
    number: int

    @classmethod
    def parse(cls, name: str) -> Segment | None:
        """Return the segment that a file name tells, None for another file.

        >>> Segment.parse("0000000100000000000000A3.partial")
        Segment(timeline=1, number=163)
        >>> Segment.parse("00000002.history") is None
        True
        """
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        timeline, high, low = (int(part, 16) for part in match.groups()[:3])
        return cls(timeline, high * (2**32 // SEGMENT_BYTES) + low)

    @property
    def name(self) -> str:
        """The file name of the complete segment.

        >>> Segment(1, 256).name
        '000000010000000100000000'
        """
        per_file = 2**32 // SEGMENT_BYTES
        return f"{self.timeline:08X}{self.number // per_file:08X}{self.number % per_file:08X}"


def needed(names: Iterable[str], start: Segment) -> list[str]:
    """Return the files that recovery from `start` reads, in order; a complete segment hides its partial.

    Raises DamagedError for a hole, naming the file that is missing.

    >>> needed(["000000010000000000000002.partial", "000000010000000000000001"], Segment(1, 1))
    ['000000010000000000000001', '000000010000000000000002.partial']
    """
    found: dict[int, str] = {}
    for name in sorted(names, reverse=True):  # the complete one sorts before its partial, so it comes last
        segment = Segment.parse(name)
        if segment and segment.timeline == start.timeline and segment.number >= start.number:
            found[segment.number] = name
    if not found:
        raise DamagedError(f"WAL file {start.name} is missing, and nothing follows it")
    last = max(found)
    for number in range(start.number, last + 1):
        if number not in found:
            raise DamagedError(f"WAL file {Segment(start.timeline, number).name} is missing")
        if number != last and found[number].endswith(".partial"):
            raise DamagedError(f"WAL file {found[number]} was never completed, but others follow it")
    return [found[number] for number in sorted(found)]


def check_sizes(sizes: Sequence[tuple[str, int]]) -> None:
    """Raise DamagedError for a segment that is not of a segment's size."""
    for name, size in sizes:
        if size != SEGMENT_BYTES:
            raise DamagedError(f"WAL file {name} has {size} bytes instead of {SEGMENT_BYTES}: it was cut")


def stopped_at(message: str) -> int | None:
    """Return the position at which pg_waldump could not go on, from its last error; None if it tells none.

    >>> stopped_at("error in WAL record at 0/3000110: invalid record length at 0/3000148: expected at least 24, got 0")
    50331976
    """  # noqa: E501 - a message of PostgreSQL
    found = _ERROR_AT.findall(message)
    return (int(found[-1][0], 16) << 32) + int(found[-1][1], 16) if found else None


def end_is_plausible(segment: bytes, offset: int) -> bool:
    """Tell whether a newest segment may end at `offset`: zeros follow, or less than the one record there.

    Anything else is a record that was damaged after it had been received.
    """
    used = len(segment.rstrip(b"\0"))
    if used <= offset:
        return True
    # Below a page's beginning a header may stand already, with nothing behind it.
    if offset % PAGE_BYTES == 0 and used <= offset + (_SHORT_HEADER if offset else _LONG_HEADER):
        return True
    position = offset + (0 if offset % PAGE_BYTES else (_LONG_HEADER if offset == 0 else _SHORT_HEADER))
    if position + 4 > len(segment):
        return True
    (length,) = struct.unpack_from("<I", segment, position)
    if not _SMALLEST_RECORD <= length <= _LARGEST_RECORD:
        return False
    return used < record_end(position, length)


def record_end(position: int, length: int) -> int:
    """Return the offset behind a record of `length` bytes at `position`, with the page headers it crosses.

    >>> record_end(100, 50), record_end(8190, 10)
    (150, 8224)
    """
    while length > 0:
        room = PAGE_BYTES - position % PAGE_BYTES
        if length <= room:
            return position + length
        length -= room
        position += room + _SHORT_HEADER
    return position


def check_end(files: Sequence[Path], message: str) -> int:
    """Return the position at which the log ends, from what pg_waldump said after reading all of `files`.

    Raises DamagedError where it stopped before the newest segment, or at a record that had been received.
    """
    position = stopped_at(message)
    last = Segment.parse(files[-1].name)
    if last is None:
        raise DamagedError(f"{files[-1].name} is no WAL file")
    beginning = last.number * SEGMENT_BYTES
    if position is None:
        if "could not find" in message or "could not open" in message or not message.strip():
            return beginning + SEGMENT_BYTES  # ends with a segment, the next has no file yet
        raise DamagedError(f"the WAL up to {files[-1].name} can't be read: {message.strip()[-300:]}")
    if position < beginning:
        broken = Segment(last.timeline, position // SEGMENT_BYTES).name
        raise DamagedError(f"WAL file {broken} is damaged: {message.strip()[-300:]}")
    if position < beginning + SEGMENT_BYTES and not end_is_plausible(
        files[-1].read_bytes(), position - beginning
    ):
        raise DamagedError(f"WAL file {files[-1].name} is damaged: {message.strip()[-300:]}")
    return position
