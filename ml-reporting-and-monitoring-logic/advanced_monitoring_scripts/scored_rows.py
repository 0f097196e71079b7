"""What the model saw and said: batch scores or decision records of a window of days."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from advanced_monitoring_scripts.champion_bundle import ChampionBundle
from advanced_monitoring_scripts.distribution_drift import NumericReference
from advanced_monitoring_scripts.errors import MissingInputError, MonitoringError, UnreachableError
from advanced_monitoring_scripts.settings import DatabaseAddress


@dataclass(frozen=True)
class Source:
    """A table of scored rows: its day, its key, and which rows are left out, by reason."""

    table: tuple[str, str]
    day: str
    key: str
    left_out: Mapping[str, str]
    remedy: str


SOURCES = {
    "batch": Source(
        table=("scoring", "batch_scores"),
        day="data_date",
        key="entity_key",
        left_out={},
        remedy="score the day (DAG score_daily_transactions_fraud)",
    ),
    "api": Source(
        table=("decisions", "decision_records"),
        day="(requested_at at time zone 'UTC')::date",
        key="request_id",
        left_out={"decided without a score": "score is null", "decided on fallback features": "degraded"},
        remedy="send requests to the service",
    ),
}
OTHER_BUNDLE = "scored by another bundle"


@dataclass(frozen=True)
class ScoredRows:
    """One row a score: parallel arrays, numeric features as float64 (NaN is null), others as objects."""

    days: np.ndarray
    keys: np.ndarray
    groups: np.ndarray
    scores: np.ndarray
    features: dict[str, np.ndarray]
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.scores)

    def column(self, name: str) -> np.ndarray:
        """Return a feature's values, or the scores for `score`."""
        return self.features.get(name, self.scores)

    @property
    def number_of_days(self) -> int:
        """Count the days that have rows."""
        return len(np.unique(self.days))


def read_scored_rows(
    database: DatabaseAddress, source: Source, bundle: ChampionBundle, last: date, days: int
) -> ScoredRows:
    """Return the champion's rows of the window of `days` that ends with `last`.

    Raises MissingInputError when `last` itself has none, UnreachableError when the database does not answer.
    """
    window = {
        "model": bundle.model_name,
        "bundle": bundle.sha256,
        "first": last - timedelta(days=days - 1),
        "last": last,
    }
    reasons = {OTHER_BUNDLE: "bundle_sha256 <> %(bundle)s", **source.left_out}
    try:
        with (
            psycopg.connect(**database.connection_arguments()) as connection,  # type: ignore[arg-type]
            connection.cursor(binary=True) as cursor,
        ):
            counts = cursor.execute(_count_query(source, reasons), window).fetchall()
            rows = cursor.execute(_rows_query(source, reasons, bundle), window).fetchall()
    except psycopg.errors.UndefinedTable:
        raise MissingInputError(f"there is no table {'.'.join(source.table)} yet: {source.remedy}") from None
    except (psycopg.errors.InvalidTextRepresentation, psycopg.errors.UndefinedColumn) as error:
        raise MonitoringError(
            f"{'.'.join(source.table)} does not hold what its contract says: {error}"
        ) from None
    except psycopg.OperationalError as error:
        raise UnreachableError(f"database {database.name} does not answer: {str(error).strip()}") from None
    left_out = {reason: int(number) for reason, number in zip(reasons, counts[0], strict=True) if number}
    if not any(row[0] == last for row in rows):
        shown = "".join(f"; {number} {reason}" for reason, number in left_out.items())
        raise MissingInputError(
            f"the champion ({bundle.model_name} {bundle.model_version}) has no scores of {last} in "
            f"{'.'.join(source.table)}{shown}: {source.remedy}"
        )
    return _to_arrays(rows, bundle, left_out)


def _to_arrays(rows: list[tuple[Any, ...]], bundle: ChampionBundle, left_out: dict[str, int]) -> ScoredRows:
    days, keys, groups, scores, *columns = zip(*rows, strict=True)
    features = {
        name: np.array(
            column, dtype=np.float64 if isinstance(bundle.references[name], NumericReference) else object
        )
        for name, column in zip(bundle.feature_names, columns, strict=True)
    }
    return ScoredRows(
        days=np.array(days, dtype="datetime64[D]"),
        keys=np.array(keys, dtype=object),
        groups=np.array([str(group) for group in groups]),
        scores=np.array(scores, dtype=np.float64),
        features=features,
        left_out=left_out,
    )


def _count_query(source: Source, reasons: Mapping[str, str]) -> sql.Composed:
    """Count the rows of the window that each reason leaves out."""
    counts = sql.SQL(", ").join(
        sql.SQL("count(*) filter (where {})").format(sql.SQL(condition)) for condition in reasons.values()
    )
    return sql.SQL("select {} from {} where {}").format(
        counts, sql.Identifier(*source.table), _window(source)
    )


def _rows_query(source: Source, reasons: Mapping[str, str], bundle: ChampionBundle) -> sql.Composed:
    """Select day, key, group, score and each feature as a column."""
    columns = [
        sql.SQL(
            "(features ->> {})::float8" if isinstance(reference, NumericReference) else "features ->> {}"
        ).format(sql.Literal(name))
        for name, reference in bundle.references.items()
        if name in bundle.feature_names
    ]
    kept = sql.SQL(" and ").join(sql.SQL("not ({})").format(sql.SQL(text)) for text in reasons.values())
    head = sql.SQL("{}, {}, entity_ids ->> {}, score").format(
        sql.SQL(source.day), sql.SQL(source.key), sql.Literal(bundle.group_key)
    )
    return sql.SQL("select {} from {} where {} and {} order by 1, 2").format(
        sql.SQL(", ").join([head, *columns]), sql.Identifier(*source.table), _window(source), kept
    )


def _window(source: Source) -> sql.Composed:
    return sql.SQL("model_name = %(model)s and {day} between %(first)s and %(last)s").format(
        day=sql.SQL(source.day)
    )
