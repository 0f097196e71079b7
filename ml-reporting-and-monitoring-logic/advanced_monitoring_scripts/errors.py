"""What can go wrong in a monitoring job.

MonitoringError
├── MissingInputError    what is to be judged is not there (champion, scores, tables)
├── BundleError          the release bundle is not what was registered, or can't be read
└── UnreachableError     a database or the registry does not answer
"""

from __future__ import annotations


class MonitoringError(Exception):
    """A job could not do its work; the message says what is wrong and what to do."""


class MissingInputError(MonitoringError):
    """What is to be judged is not there."""


class BundleError(MonitoringError):
    """The release bundle is not what was registered, or can't be read."""


class UnreachableError(MonitoringError):
    """A database or the registry does not answer."""
