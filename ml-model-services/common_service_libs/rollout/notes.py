"""What the processes of a service tell each other about a rollout: files in the service's spool folder.

Each process writes its own window (`window-<pid>.json`) and reads those of all, so the verdict is on the
whole service of this machine; and `aborted.json` says which canary was stopped, over restarts too.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from common_service_libs.rollout.verdict import DEFAULT_LIMITS, Limits
from common_service_libs.rollout.window import Slice

logger = logging.getLogger(__name__)

ABORTED = "aborted.json"
FOLDER = "rollout"


class Reference(msgspec.Struct, frozen=True):
    """A bundle that takes part."""

    version: int
    bundle_sha256: str


class Part(msgspec.Struct):
    """What one process writes down: who takes part, and what was seen."""

    service: str
    updated_at: float
    champion: Reference | None
    canary: Reference | None
    shadow: Reference | None
    share: float
    aborted: bool
    slices: list[Slice]
    reference: tuple[int, ...] | None = None
    mildest: str | None = None
    limits: Limits = DEFAULT_LIMITS

    @property
    def bundles(self) -> tuple[str | None, ...]:
        """The identities of all that take part: windows of the same add up."""
        return tuple(
            None if part is None else part.bundle_sha256 for part in (self.champion, self.canary, self.shadow)
        )


class Abort(msgspec.Struct, frozen=True):
    """A canary that was stopped; it stays so until its alias names another version."""

    version: int
    bundle_sha256: str
    at: float
    reason: str


_part, _abort = msgspec.json.Decoder(Part), msgspec.json.Decoder(Abort)


class Notes:
    """The folder of a service's rollout."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / f"window-{os.getpid()}.json"

    def write(self, part: bytes) -> None:
        """Replace what this process says; `part` is an encoded Part."""
        self._replace(self._own, part)

    def remove(self) -> None:
        """Take back what this process says."""
        self._own.unlink(missing_ok=True)

    def read(self, oldest: float) -> Sequence[Part]:
        """Return what all processes say; removes what none has said since `oldest`, epoch seconds."""
        parts = []
        for path in sorted(self._folder.glob("window-*.json")):
            try:
                part = _part.decode(path.read_bytes())
            except OSError:
                continue  # its process has just ended
            except msgspec.DecodeError as error:
                logger.warning("a window cannot be read", extra={"file": path.name, "reason": str(error)})
                continue
            if part.updated_at >= oldest:
                parts.append(part)
            elif path != self._own:
                path.unlink(missing_ok=True)
        return parts

    def aborted(self) -> Abort | None:
        """Return which canary was stopped, if one was."""
        try:
            return _abort.decode((self._folder / ABORTED).read_bytes())
        except OSError:
            return None
        except msgspec.DecodeError as error:
            logger.warning("the note of a stopped canary cannot be read", extra={"reason": str(error)})
            return None

    def abort(self, version: int, bundle_sha256: str, reason: str) -> None:
        """Note that a canary was stopped."""
        self._replace(
            self._folder / ABORTED, msgspec.json.encode(Abort(version, bundle_sha256, time.time(), reason))
        )

    def clear_abort(self) -> None:
        """Forget that a canary was stopped."""
        (self._folder / ABORTED).unlink(missing_ok=True)

    def _replace(self, path: Path, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            scratch.write_bytes(content)
            scratch.replace(path)
        except OSError:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise
