"""What can go wrong; each message says what to do or which file it is about.

BackupError
├── DamagedError       a file of a backup is not what was written
├── NotEmptyError      the place to restore to holds data
└── AmbiguousError     two backups could be meant, a person must choose
"""

from __future__ import annotations


class BackupError(Exception):
    """A backup or a restore can't go on."""


class DamagedError(BackupError):
    """A backup is damaged; the message names the file."""


class NotEmptyError(BackupError):
    """The place to restore to is not empty."""


class AmbiguousError(BackupError):
    """The newest backup may not be the wanted one."""
