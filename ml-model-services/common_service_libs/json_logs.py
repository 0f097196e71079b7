"""Logs as one JSON object a line on standard output; extra fields become members."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from common_service_libs.decision_record import DecisionRecord, rfc3339

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


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
        line.update({key: value for key, value in vars(record).items() if key not in _OWN})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return self._encoder.encode(line).decode()


def configure_logging(service: str, level: str) -> None:
    """Send everything to standard output as JSON; called by a service's `main`, never at import."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"


def hashed(entity_ids: Mapping[str, int | str]) -> dict[str, str]:
    """Return entity ids as short digests: lines of one entity can be found, the entity cannot be read off.

    >>> hashed({"customer_id": 7})
    {'customer_id': 'c67c3fcf8a3a'}
    """
    return {
        name: hashlib.blake2b(f"{name}:{value}".encode(), digest_size=6).hexdigest()
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
