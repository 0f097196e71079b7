"""Score a day's transactions with the champion: `python -m src.predict_batch --date D`.

Writes `scoring.batch_scores` of database `decisions`, one row a transaction, the day replaced in one
transaction. `--engine spark` spreads the work; `--input vectors.parquet --out FOLDER` scores a file instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date

from common_ml_utils.batch.command import batch_command
from common_ml_utils.batch.prediction import BatchProject, DayPlan, plan_by_time
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.feature_store_client import FeatureStoreClient
from src.config import IDENTITY, FraudTrainingSettings
from src.data_loader import KEY, day_entities
from src.preprocessor import check_ranges


def plan_day(client: FeatureStoreClient, contract: PublishedContract, day: date, chunk_rows: int) -> DayPlan:
    """Cut the day's transactions by their time; each is scored as of its own moment."""
    return plan_by_time(client, day_entities(contract), day, chunk_rows)


def project() -> BatchProject:
    """Return what batch prediction must know of this model."""
    return BatchProject(
        model_name=IDENTITY.model_name,
        settings=FraudTrainingSettings,
        key=KEY,
        rows_named="transactions",
        plan=plan_day,
        check=check_ranges,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    return batch_command(project(), arguments)


if __name__ == "__main__":
    sys.exit(main())
