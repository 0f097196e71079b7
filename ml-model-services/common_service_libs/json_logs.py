"""Logs as one JSON object a line on standard output; extra fields become members."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from common_service_libs.decision_record import DecisionRecord, rfc3339
from common_service_libs.telemetry import current_trace

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_VALUE = re.compile(r"""'[^']*'|"[^"]*"|\d{3,}""")
_FRAME = ("  ", "Traceback ", "During handling ", "The above exception ")
HASH_KEY_BYTES = 32
_hash_key = secrets.token_bytes(HASH_KEY_BYTES)  # until a service names its own: safe, good for one process


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON; what cannot be encoded is written as text."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace = current_trace()
        if trace is not None:
            line["trace_id"] = trace.trace_id
        line.update({key: value for key, value in vars(record).items() if key not in _OWN})
        if record.exc_info:
            line["exception"] = without_values(self.formatException(record.exc_info))
        return self._encoder.encode(line).decode()


def configure_logging(service: str, level: str) -> None:
    """Send everything to standard output as JSON; called by a service's `main`, never at import."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"


def without_values(traceback: str) -> str:
    """Return a traceback whose messages hold no quoted text and no long number: they may come from a client.

    >>> without_values("Traceback (most recent call last):\\n  File 'a.py', line 596\\nKeyError: 59612")
    "Traceback (most recent call last):\\n  File 'a.py', line 596\\nKeyError: …"
    """
    lines = traceback.split("\n")
    return "\n".join(line if line.startswith(_FRAME) else _VALUE.sub("…", line) for line in lines)


def use_hash_key(path: Path) -> None:
    """Hash entity ids with the key in a file from now on; a file that is not there is made, mode 0600.

    Raises ValueError if the file holds fewer than 32 bytes.
    """
    global _hash_key  # noqa: PLW0603  (one process, one key: the formatter of every logger needs it)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if not path.exists():
        with suppress(FileExistsError):
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(HASH_KEY_BYTES))
        try:
            with suppress(FileExistsError):  # another process of this installation was first: its key counts
                path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
    key = path.read_bytes()
    if len(key) < HASH_KEY_BYTES:
        raise ValueError(f"{path} holds fewer than {HASH_KEY_BYTES} bytes")
    _hash_key = hashlib.blake2b(key, digest_size=HASH_KEY_BYTES).digest()


def hashed(entity_ids: Mapping[str, int | str]) -> dict[str, str]:
    """Return entity ids as short keyed digests: lines of one entity can be found, nobody can try ids through.

    >>> hashed({"customer_id": 7}) == hashed({"customer_id": 7}) != hashed({"customer_id": 8})
    True
    """
    return {
        name: hashlib.blake2b(f"{name}:{value}".encode(), key=_hash_key, digest_size=8).hexdigest()
        for name, value in entity_ids.items()
    }


def decision_fields(record: DecisionRecord) -> dict[str, Any]:
    """Return what the log line of a request says about its decision."""
    return {
        "entities": hashed(record.entity_ids),
        "decision": record.decision,
        "reason_codes": record.reason_codes,
        "degraded": record.degraded,
        "model_version": record.model_version,
        "policy_version": record.policy_version,
    }
