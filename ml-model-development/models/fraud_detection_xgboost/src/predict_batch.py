"""Score a day's transactions with the champion: `python -m src.predict_batch --date D`.

Writes `scoring.batch_scores` of database `decisions`, one row a transaction. A rerun replaces the day's rows
of the model in one transaction, so readers see the old scores or the new ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd
import psycopg

from common_ml_utils.command_line import run_command
from common_ml_utils.errors import ModelDevelopmentError, RegistryError, first_line
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import CHAMPION, ModelRegistry, RegisteredBundle
from common_ml_utils.settings import DatabaseAddress
from src.config import IDENTITY, FraudTrainingSettings
from src.data_loader import KEY, load_day
from src.preprocessor import check_ranges

CREATE = """
SELECT pg_advisory_xact_lock(hashtext('scoring.batch_scores'));
CREATE SCHEMA IF NOT EXISTS scoring;
CREATE TABLE IF NOT EXISTS scoring.batch_scores (
    model_name text NOT NULL,
    data_date date NOT NULL,
    entity_key text NOT NULL,
    model_version integer NOT NULL,
    bundle_sha256 text NOT NULL,
    entity_ids jsonb NOT NULL,
    request jsonb NOT NULL,
    features jsonb NOT NULL,
    score double precision NOT NULL CHECK (score BETWEEN 0 AND 1),
    scored_at timestamptz NOT NULL,
    PRIMARY KEY (model_name, data_date, entity_key)
);
"""
COLUMNS = (
    "model_name, data_date, entity_key, model_version, bundle_sha256,"
    " entity_ids, request, features, score, scored_at"
)


def predict_batch(settings: FraudTrainingSettings, day: date) -> int:
    """Score one day and return the number of rows written."""
    registry = ModelRegistry(settings.mlflow_tracking_uri)
    registry.check_reachable()
    champion = registry.load(IDENTITY.model_name, CHAMPION)
    if champion is None:
        raise RegistryError(f"{IDENTITY.model_name} has no champion: run the gate first")
    frame = check_ranges(
        load_day(FeatureStoreClient(settings.feature_store_db), champion.bundle.contract, day)
    )
    scores = champion.bundle.score_frame(frame)
    return replace_day(settings.decisions_db, champion, day, list(batch_rows(champion, day, frame, scores)))


def batch_rows(
    champion: RegisteredBundle, day: date, frame: pd.DataFrame, scores: np.ndarray
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of `scoring.batch_scores`, in its column order."""
    service = champion.bundle.contract.service
    scored_at = datetime.now(UTC)
    requests = [field.name for field in service.request]
    ids, request, features = (
        frame[names].to_dict("records") for names in (service.join_keys, requests, service.feature_names)
    )
    for i, key in enumerate(frame[KEY]):
        yield (
            champion.model_name,
            day,
            str(key),
            champion.version,
            champion.bundle.sha256,
            _json(ids[i]),
            _json(request[i]),
            _json(features[i]),
            float(scores[i]),
            scored_at,
        )


def replace_day(
    database: DatabaseAddress, champion: RegisteredBundle, day: date, rows: Sequence[tuple[Any, ...]]
) -> int:
    """Replace the model's scores of the day by the rows, all or nothing."""
    try:
        with (
            psycopg.connect(**database.connection_arguments()) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(CREATE)
            cursor.execute(
                "DELETE FROM scoring.batch_scores WHERE model_name = %s AND data_date = %s",
                [champion.model_name, day],
            )
            with cursor.copy(f"COPY scoring.batch_scores ({COLUMNS}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
    except psycopg.Error as error:
        raise ModelDevelopmentError(f"the scores of {day} were not written: {first_line(error)}") from error
    return len(rows)


def _json(values: dict[str, Any]) -> str:
    """Write a record as JSON; NaN, which JSON lacks, is null."""
    plain = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }
    return json.dumps(plain, allow_nan=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m src.predict_batch", description=__doc__)
    parser.add_argument("--date", type=date.fromisoformat, required=True, help="the day to score (UTC)")
    options = parser.parse_args(arguments)

    def work(settings: FraudTrainingSettings) -> None:
        rows = predict_batch(settings, options.date)
        print(f"{rows} transactions of {options.date} scored")

    return run_command(FraudTrainingSettings, work)


if __name__ == "__main__":
    sys.exit(main())
