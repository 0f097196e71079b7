"""The command line of batch prediction, the same for every project that scores vectors."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import ModuleType

from common_ml_utils.batch.parquet import score_parquet
from common_ml_utils.batch.prediction import (
    CHUNK_ROWS,
    BatchOutcome,
    BatchPrediction,
    BatchProject,
    ScoringEngine,
    load_champion,
)
from common_ml_utils.command_line import run_command
from common_ml_utils.errors import BackendError
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import ModelRegistry
from common_ml_utils.settings import PlatformSettings
from common_ml_utils.training_backends import DistributionSettings

EXAMPLES = """
  python -m src.predict_batch --date 2026-11-20
  python -m src.predict_batch --date 2026-11-20 --engine spark
  python -m src.predict_batch --input vectors.parquet --out scores --engine spark
"""


def batch_command(project: BatchProject, arguments: Sequence[str] | None = None) -> int:
    """Score a day into `scoring.batch_scores`, or a file of vectors into Parquet; return the exit code."""
    options = parse(project, arguments)

    def work(settings: PlatformSettings) -> None:
        start = time.perf_counter()
        if options.date:
            engine = spark().SparkEngine(distribution(settings)) if options.engine == "spark" else None
            outcome = predict_day(project, settings, options.date, options.chunk_rows, engine)
            rows, version, what = outcome.entities, outcome.model_version, f" of {options.date}"
            if outcome.continued:
                print(
                    f"continued after {outcome.continued} {project.rows_named} of a run that was stopped",
                    file=sys.stderr,
                )
        else:
            champion = load_champion(ModelRegistry(settings.mlflow_tracking_uri), project.model_name)
            if options.engine == "spark":
                rows = spark().score_parquet_on_spark(
                    project, champion, options.input, options.out, distribution(settings)
                )
            else:
                rows = score_parquet(
                    project, champion, Path(options.input), Path(options.out), options.chunk_rows
                )
            version, what = champion.version, f" of {options.input}"
        seconds = time.perf_counter() - start
        print(
            f"{rows} {project.rows_named}{what} scored with {project.model_name} version {version}"
            f" ({seconds:.1f} s, {rows / seconds:,.0f} a second)"
        )

    return run_command(project.settings, work)


def predict_day(
    project: BatchProject,
    settings: PlatformSettings,
    day: date,
    chunk_rows: int = CHUNK_ROWS,
    engine: ScoringEngine | None = None,
) -> BatchOutcome:
    """Score a day with the registry and the feature store that the settings name, and publish it."""
    registry = ModelRegistry(settings.mlflow_tracking_uri)
    client = FeatureStoreClient(settings.feature_store_db)
    return BatchPrediction(project, settings, registry, client, chunk_rows, engine).predict(day)


def parse(project: BatchProject, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; a day, or a file with a place for its scores, is needed."""
    parser = argparse.ArgumentParser(
        prog="python -m src.predict_batch",
        description=f"Score {project.rows_named} with the champion of {project.model_name}.",
        epilog=f"examples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--date", type=date.fromisoformat, help="the day to score (UTC); replaces the day")
    parser.add_argument("--input", help="score these vectors (Parquet, file or folder) instead of a day")
    parser.add_argument("--out", help="folder of Parquet for the scores of --input; replaced")
    parser.add_argument("--engine", choices=["local", "spark"], default="local")
    parser.add_argument(
        "--chunk-rows", type=positive, default=CHUNK_ROWS, help=f"rows in memory at once ({CHUNK_ROWS})"
    )
    options = parser.parse_args(arguments)
    if (options.date is None) == (options.input is None) or (options.input is None) != (options.out is None):
        parser.error("either --date, or --input with --out")
    if options.input and project.score is not None:
        parser.error(f"{project.model_name} scores no vectors: give a --date")
    return options


def positive(text: str) -> int:
    """Read a whole number of at least one."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def distribution(settings: PlatformSettings) -> DistributionSettings:
    """Return how Spark is started: the project's settings, where it has any."""
    return getattr(settings, "distribution", DistributionSettings())


def spark() -> ModuleType:
    """Return the module that runs on Spark; it is imported only when asked for, as images do without."""
    try:
        import pyspark  # noqa: F401 (tried, to tell its absence from an error of our own)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"--engine spark needs a package that is not installed here: {error.name}"
        ) from error
    from common_ml_utils.batch import spark as module

    return module
