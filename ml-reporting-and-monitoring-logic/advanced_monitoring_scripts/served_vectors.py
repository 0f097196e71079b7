"""Feature vectors as services logged them, and the rows that the feature store needs to recompute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import pyarrow as pa

from advanced_monitoring_scripts.errors import MissingInputError, MonitoringError, UnreachableError
from advanced_monitoring_scripts.settings import DatabaseAddress

MICROSECONDS = pa.timestamp("us", tz="UTC")

RECORDS = """
select request_id, requested_at, entity_ids, request, features, degraded
from decisions.decision_records
where service = %(service)s and model_name = %(model)s
  and requested_at >= %(start)s and requested_at < %(end)s
order by request_id
"""


@dataclass(frozen=True)
class ServedModel:
    """What a model is served with.

    `event_time` names the request's RFC 3339 time that features are as of (None: the time of the request);
    `epoch_name` the request value that hands it on as seconds since the epoch; `request_values` the others.
    """

    feature_service: str
    event_time: str | None = None
    epoch_name: str | None = None
    request_values: tuple[str, ...] = ()


SERVED_MODELS = {
    "fraud-detection-model": ServedModel("fraud_detection_v1", "tx_datetime", "tx_timestamp", ("tx_amount",)),
    "churn-prediction-model": ServedModel("customer_churn_v1"),
}


@dataclass(frozen=True)
class ServedVector:
    """One decision's features (null is None), and what they were asked with."""

    request_id: str
    requested_at: datetime
    entity_ids: Mapping[str, int]
    request: Mapping[str, Any]
    features: Mapping[str, float | str | None]


@dataclass(frozen=True)
class ServedVectors:
    """The decisions of an interval; those made without the online store are counted and left out."""

    vectors: Sequence[ServedVector]
    degraded: int


def read_served_vectors(
    database: DatabaseAddress, service: str, model_name: str, start: datetime, end: datetime
) -> ServedVectors:
    """Return what `service` served with a model, requested in [start, end) (UTC).

    Raises MissingInputError where there is nothing, UnreachableError where the database does not answer.
    """
    wanted = {"service": service, "model": model_name, "start": start, "end": end}
    try:
        with psycopg.connect(**database.connection_arguments()) as connection:  # type: ignore[arg-type]
            rows = connection.execute(RECORDS, wanted).fetchall()
    except psycopg.errors.UndefinedTable:
        raise MissingInputError("there is no table decisions.decision_records: no service has run") from None
    except psycopg.OperationalError as error:
        raise UnreachableError(f"database {database.name} does not answer: {str(error).strip()}") from None
    vectors = [ServedVector(*row[:5]) for row in rows if not row[5]]
    if not vectors:
        raise MissingInputError(
            f"{service} recorded {len(rows)} decisions of {model_name} between {start.isoformat()} and "
            f"{end.isoformat()}, and none with features from the online store"
        )
    return ServedVectors(vectors, len(rows) - len(vectors))


def entity_rows(vectors: Sequence[ServedVector], model: ServedModel) -> pa.Table:
    """Return one row a decision: `request_id`, join keys, `event_timestamp` (UTC) and request values.

    Raises MonitoringError for a record whose request does not hold what the model is served with.
    """
    times = [_event_time(vector, model) for vector in vectors]
    columns: dict[str, pa.Array] = {
        "request_id": pa.array([vector.request_id for vector in vectors], pa.string())
    }
    for key in vectors[0].entity_ids:
        columns[key] = pa.array([vector.entity_ids[key] for vector in vectors], pa.int64())
    columns["event_timestamp"] = pa.array(times, MICROSECONDS)
    for name in model.request_values:
        columns[name] = pa.array([float(_requested(vector, name)) for vector in vectors], pa.float64())
    if model.epoch_name:
        columns[model.epoch_name] = pa.array([time.timestamp() for time in times], pa.float64())
    return pa.table(columns)


def _event_time(vector: ServedVector, model: ServedModel) -> datetime:
    if model.event_time is None:
        return vector.requested_at
    return datetime.fromisoformat(str(_requested(vector, model.event_time)))


def _requested(vector: ServedVector, name: str) -> Any:
    if vector.request.get(name) is None:
        raise MonitoringError(f"the request of decision {vector.request_id} has no {name}")
    return vector.request[name]
