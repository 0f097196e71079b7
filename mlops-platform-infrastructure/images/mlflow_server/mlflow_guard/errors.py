"""Errors of the layer.

GuardError
├── ConfigurationError   the server does not start
└── RefusedError              a request is answered with a 4xx status and not passed on
"""

from __future__ import annotations


class GuardError(Exception):
    """Anything the layer refuses."""


class ConfigurationError(GuardError):
    """The server can't be started safely as it is set up; the message says what to change."""


class RefusedError(GuardError):
    """A request that is not passed on, with the status of the answer; the reason is for the caller."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
