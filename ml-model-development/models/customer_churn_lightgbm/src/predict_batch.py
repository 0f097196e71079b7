"""Score all subscribers as of a day with the champion: `python -m src.predict_batch --date D`.

Each subscriber known at the midnight that ends the day gets a score from what was known then. Writes
`scoring.batch_scores` of database `decisions`, the day replaced in one transaction. `--engine spark` spreads
the work; `--input vectors.parquet --out FOLDER` scores a file instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from psycopg import sql

from common_ml_utils.batch.command import batch_command
from common_ml_utils.batch.prediction import (
    BatchProject,
    Chunk,
    DayPlan,
    cut,
    day_bounds,
)
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient
from src.config import IDENTITY, ChurnTrainingSettings
from src.data_loader import KEY
from src.preprocessor import check_ranges

PROFILES = ("features", "fct_subscriber_profile")


@dataclass(frozen=True)
class SnapshotQuery(EntityQuery):
    """The subscribers known at the end of [start, end), as of that moment; `keys` limits their ids."""

    keys: tuple[int, int] | None = None

    def statement(self, start: datetime, end: datetime) -> str:
        """Return the SELECT; every row's `event_timestamp` is `end`."""
        moment = sql.SQL("timestamptz {}").format(sql.Literal(end.isoformat()))
        query = sql.SQL("SELECT {k}, {m} AS event_timestamp FROM {t} WHERE {c} <= {m} AND {e} <= {m}").format(
            k=sql.Identifier(KEY),
            m=moment,
            t=sql.Identifier(*self.table),
            c=sql.Identifier("created_timestamp"),
            e=sql.Identifier(self.timestamp),
        )
        if self.keys is not None:
            bounds = [sql.Literal(key) for key in self.keys]
            query += sql.SQL(" AND {} BETWEEN {} AND {}").format(sql.Identifier(KEY), *bounds)
        return query.as_string(None)


def subscribers(keys: tuple[int, int] | None = None) -> SnapshotQuery:
    """Return the query of all subscribers, or of those with ids from the first to the last given."""
    return SnapshotQuery(table=PROFILES, columns=(KEY,), order_by=KEY, keys=keys)


def plan_day(client: FeatureStoreClient, contract: PublishedContract, day: date, chunk_rows: int) -> DayPlan:
    """Cut the subscribers known at the end of the day by their ids."""
    start, end = day_bounds(day)
    found = client.query(f"SELECT {KEY} FROM ({subscribers().statement(start, end)}) AS s ORDER BY 1")  # noqa: S608
    if not found:
        raise EmptyWindowError(
            f"{'.'.join(PROFILES)} has no subscriber known at the end of {day}: load a snapshot of that"
            " day or an earlier one and build the feature tables"
        )
    ids = [row[KEY] for row in found]
    chunks = tuple(
        Chunk(number, subscribers((ids[first], ids[first + rows - 1])), start, end, rows)
        for number, (first, rows) in enumerate(cut([1] * len(ids), chunk_rows))
    )
    return DayPlan(subscribers(), start, end, chunks)


def project() -> BatchProject:
    """Return what batch prediction must know of this model."""
    return BatchProject(
        model_name=IDENTITY.model_name,
        settings=ChurnTrainingSettings,
        key=KEY,
        rows_named="subscribers",
        plan=plan_day,
        check=check_ranges,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    return batch_command(project(), arguments)


if __name__ == "__main__":
    sys.exit(main())
