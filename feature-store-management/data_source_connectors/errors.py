"""What can go wrong with a source, whatever its kind; a message never holds a secret.

SourceError
├── SourceUnavailableError: not reached, or no longer; asking again later may help
├── SourceRefusedError: login, certificate, address or name refused; asking again won't help
└── SourceDataError: an answer that is not what was agreed: kind, size, shape or type
"""

from __future__ import annotations

from collections.abc import Iterable


class SourceError(Exception):
    """A source can't be read or written."""


class SourceUnavailableError(SourceError):
    """A source is not reached, or no longer.

    `retryable` says whether a next attempt makes sense, `retry_after_seconds` what the source itself asked
    for.
    """

    def __init__(
        self, message: str, *, retryable: bool = True, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds


class SourceRefusedError(SourceError):
    """A source refuses: who asks, or what is asked for."""


class SourceDataError(SourceError):
    """A source gives what can't be taken as it is."""


def masked(text: object, secrets: Iterable[str]) -> str:
    """Return the text in one line, every secret in it as `***`.

    >>> masked("FATAL: no role\\n 'kim:s3cret'", ["s3cret"])
    "FATAL: no role 'kim:***'"
    """
    shown = str(text)
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        shown = shown.replace(secret, "***")
    return " ".join(shown.split())
