"""How far an unfinished materialization got: a note in Redis itself, so that it is lost with what it speaks
of.

The note is written after the rows that it counts, and Redis keeps the order of writes in its log: where the
note is there after a crash, the rows are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from fast_redis_source import Interval, Resume
from fast_redis_writer import Client, Ties

LIFETIME_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Note:
    """What is written: the rows of keys up to `last_key`, of an interval, of the source's table as it was."""

    start: str
    end: str
    ties: Ties
    version: str
    last_key: list[Any]


class Progress:
    """The note of one feature view in one project."""

    def __init__(self, client: Client, project: str, view: str) -> None:
        self._client = client
        self._key = f"materialization_progress:{view}:{project}"

    def resume(self, interval: Interval, ties: Ties, version: str | None) -> Resume | None:
        """Return where a run over `interval` may go on, None where it must begin.

        It may where all that the unfinished run has not seen are rows with times after its end: the table is
        as it was, the interval ends no earlier, and begins no earlier. A run that writes over newer rows
        (`always`) goes on only to the same end: it would take the newest of those rows for the newest of all.
        """
        raw: Any = self._client.get(self._key)
        if raw is None or version is None:
            return None
        note = Note(**json.loads(raw))
        start, end = datetime.fromisoformat(note.start), datetime.fromisoformat(note.end)
        same = (note.version, note.ties) == (version, ties)
        if not same or start > interval.start or end > interval.end:
            return None
        if ties == "always" and (start, end) != (interval.start, interval.end):
            return None
        return Resume(tuple(note.last_key), end)

    def reached(self, interval: Interval, ties: Ties, version: str, last_key: tuple[Any, ...]) -> None:
        """Note that all keys up to `last_key` are written as of the interval's end."""
        note = Note(interval.start.isoformat(), interval.end.isoformat(), ties, version, list(last_key))
        self._client.set(self._key, json.dumps(asdict(note)), ex=LIFETIME_SECONDS)

    def finished(self) -> None:
        """Forget the note."""
        self._client.delete(self._key)
