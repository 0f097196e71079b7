"""Totals into the online store, by the writer that the feature repository's online store class uses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import redis

from .aggregation_contract import StreamDefinition, StreamedView
from .running_totals import TotalsRow, field_columns
from .stream_settings import RedisSettings

# Feast imports the files of its repository as top-level modules, and so does who shares them.
FEAST_REPOSITORY = str(Path(__file__).resolve().parents[2] / "feast_repository")
if FEAST_REPOSITORY not in sys.path:
    sys.path.append(FEAST_REPOSITORY)

from fast_redis_writer import RedisRowWriter  # noqa: E402

FIELD_TYPES = {"count": "int64", "day": "int64", "sum": "float64"}


class OnlineRows:
    """Writes rows of the stream's views, over rows of the same time or an older one, never over a newer."""

    def __init__(self, settings: RedisSettings, project: str, definition: StreamDefinition) -> None:
        self._client = redis.Redis(
            host=settings.host,
            port=settings.port,
            password=settings.password.get_secret_value() if settings.password else None,
            socket_timeout=settings.timeout_seconds,
            socket_connect_timeout=settings.timeout_seconds,
            socket_keepalive=True,
        )
        self._writers = {
            view.view: RedisRowWriter(
                self._client,
                project,
                view.view,
                view.entity_key,
                [(field.name, FIELD_TYPES[field.aggregate]) for field in view.fields],
            )
            for view in definition.views
        }

    def check(self) -> None:
        """Raise redis.RedisError where Redis does not answer."""
        self._client.ping()

    def write(self, view: StreamedView, rows: Sequence[TotalsRow]) -> int:
        """Write rows, one an entity; return how many were not older than what stood there."""
        return self._writers[view.view].write(
            np.array([row.entity for row in rows], dtype=np.int64),
            np.array([row.event_us for row in rows], dtype=np.int64),
            field_columns(view, rows),
            ties="same_or_newer",
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
