"""Labels of scored rows, as far as they were known at a moment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

import numpy as np
import psycopg

from advanced_monitoring_scripts.errors import UnreachableError
from advanced_monitoring_scripts.scored_rows import ScoredRows
from advanced_monitoring_scripts.settings import DatabaseAddress

# Where the labels of a model's scored rows stand: a query for key and label by day and moment.
LABEL_QUERIES = {
    "fraud-detection-model": (
        "select transaction_id, is_fraud from labels.fct_fraud_labels"
        " where tx_date between %(first)s and %(last)s and label_known_at <= %(as_of)s"
        " order by transaction_id"
    )
}


@dataclass(frozen=True)
class LabelledScores:
    """Scores whose labels are known."""

    labels: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    first_day: date | None
    last_day: date | None


def read_labels(
    database: DatabaseAddress, model_name: str, first: date, last: date, as_of: datetime
) -> tuple[np.ndarray, np.ndarray]:
    """Return keys (int64, increasing) and labels of the days whose labels were known at `as_of`.

    No labels table yet means no labels. Raises UnreachableError when the database does not answer.
    """
    try:
        with psycopg.connect(**database.connection_arguments()) as connection:  # type: ignore[arg-type]
            rows = connection.execute(
                LABEL_QUERIES[model_name], {"first": first, "last": last, "as_of": as_of}
            ).fetchall()
    except psycopg.errors.UndefinedTable:
        rows = []
    except psycopg.OperationalError as error:
        raise UnreachableError(f"database {database.name} does not answer: {str(error).strip()}") from None
    table = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def join_labels(rows: ScoredRows, keys: np.ndarray, labels: np.ndarray) -> LabelledScores:
    """Keep the scored rows that have a label."""
    wanted = rows.keys.astype(np.int64)
    position = np.searchsorted(keys, wanted)
    found = np.zeros(len(wanted), dtype=bool)
    inside = position < len(keys)
    found[inside] = keys[position[inside]] == wanted[inside]
    days = rows.days[found]
    return LabelledScores(
        labels=labels[position[found]],
        scores=rows.scores[found],
        groups=rows.groups[found],
        first_day=days.min().item() if len(days) else None,
        last_day=days.max().item() if len(days) else None,
    )
