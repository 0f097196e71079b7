"""How a command of this root starts and ends: settings read once, errors as one line, exit 0 or 1."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import ValidationError

from common_ml_utils.errors import ModelDevelopmentError
from common_ml_utils.settings import PlatformSettings

S = TypeVar("S", bound=PlatformSettings)


def run_command(settings_type: type[S], work: Callable[[S], None]) -> int:
    """Read the settings, do the work and return the exit code; a known error is one line on stderr."""
    try:
        settings = settings_type()
    except ValidationError as error:
        for problem in error.errors():
            place = "__".join(str(part) for part in problem["loc"])
            print(f"setting {place}: {problem['msg']}", file=sys.stderr)
        return 1
    return run_plain(lambda: work(settings))


def run_plain(work: Callable[[], None]) -> int:
    """Do work that needs no settings and return the exit code; a known error is one line on stderr."""
    try:
        work()
    except ModelDevelopmentError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def utc_time(text: str) -> datetime:
    """Read an ISO date or time; without a zone it is UTC.

    >>> utc_time("2018-08-15").isoformat()
    '2018-08-15T00:00:00+00:00'
    """
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
