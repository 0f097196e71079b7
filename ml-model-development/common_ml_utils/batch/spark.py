"""Batch prediction on Spark: the chunks of a day, or a folder of Parquet, spread over Python workers.

A worker loads the champion once and keeps it for all of its tasks. It reads its own settings from its own
environment, so that no password travels with a task.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from common_ml_utils.batch.parquet import OUTPUT_FIELDS, score_batch
from common_ml_utils.batch.prediction import BatchProject, Chunk, ChunkJob, score_chunk
from common_ml_utils.distributed.spark_session import environment, spark_session
from common_ml_utils.errors import ModelDevelopmentError, RegistryError, first_line
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import ModelRegistry, RegisteredBundle
from common_ml_utils.settings import PlatformSettings
from common_ml_utils.training_backends import DistributionSettings

TASKS_A_CORE = 4  # tasks are small, so that a slow one holds up little


@dataclass
class SparkEngine:
    """Runs chunks as tasks of Spark; each stages its own rows, so a task that is repeated changes nothing."""

    distribution: DistributionSettings

    def run(self, job: ChunkJob, chunks: Sequence[Chunk], done: Callable[[int], None]) -> None:
        """Stage every chunk; `done` is told as they end."""
        if not chunks:
            return
        with session(self.distribution) as spark, ThreadPoolExecutor(1) as pool:
            tasks = min(len(chunks), spark.sparkContext.defaultParallelism * TASKS_A_CORE)
            numbers = spark.range(0, len(chunks), 1, tasks)
            ended = spark.sparkContext.accumulator(0)
            work = functools.partial(_score_chunks, job, tuple(chunks), ended)
            running = pool.submit(numbers.mapInArrow(work, "chunk bigint, rows bigint").collect)
            told = 0
            while not running.done():
                time.sleep(0.2)
                told += _tell(done, ended.value - told)
            with errors_of_spark():
                _tell(done, sum(row.rows for row in running.result()) - told)


def score_parquet_on_spark(
    project: BatchProject,
    champion: RegisteredBundle,
    source: str,
    out: str,
    distribution: DistributionSettings,
) -> int:
    """Score a folder or file of vectors into a folder of Parquet, which is replaced, and return its rows.

    Spark reads and writes, so `source` and `out` may be any place its file systems know.
    """
    with session(distribution) as spark, errors_of_spark():
        from pyspark.sql.types import DoubleType, IntegerType, StringType, StructField, StructType

        frame = spark.read.parquet(source)
        features = set(champion.bundle.contract.service.feature_names)
        kept = [column for column in frame.schema.fields if column.name not in features]
        types = {"model_version": IntegerType(), "bundle_sha256": StringType(), "score": DoubleType()}
        schema = StructType([*kept, *(StructField(name, types[name]) for name in OUTPUT_FIELDS)])
        work = functools.partial(_score_batches, project, champion.version, champion.bundle.sha256)
        frame.mapInArrow(work, schema).write.mode("overwrite").parquet(out)
        return spark.read.parquet(out).count()


@contextmanager
def session(distribution: DistributionSettings) -> Iterator[Any]:
    """Give a session whose Python workers find the project's package `src` in the folder of the command.

    One that runs in this process already is used, and left running.
    """
    from pyspark.sql import SparkSession

    if (running := SparkSession.getActiveSession()) is not None:
        yield running
        return
    paths = filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])
    with environment({"PYTHONPATH": os.pathsep.join(paths)}), spark_session(distribution) as spark:
        yield spark


@contextmanager
def errors_of_spark() -> Iterator[None]:
    """Turn a failed Spark job into one error that names the cause in the worker."""
    from pyspark.errors import PySparkException

    try:
        yield
    except PySparkException as error:
        causes = re.findall(r"^(?:common_ml_utils\.errors\.)?(\w+Error: .+)$", str(error), re.MULTILINE)
        cause = causes[-1] if causes else first_line(error)
        raise ModelDevelopmentError(f"Spark could not score the rows: {cause}") from error


@functools.cache
def worker(
    settings_type: type[PlatformSettings], model_name: str, version: int, sha256: str
) -> tuple[PlatformSettings, FeatureStoreClient, RegisteredBundle]:
    """Return settings, feature store and champion of this process, made once."""
    settings = settings_type()
    champion = ModelRegistry(settings.mlflow_tracking_uri).load_version(model_name, version)
    if champion.bundle.sha256 != sha256:
        raise RegistryError(f"{model_name} version {version} is not the bundle this run began with")
    return settings, FeatureStoreClient(settings.feature_store_db), champion


def _score_chunks(
    job: ChunkJob, chunks: Sequence[Chunk], ended: Any, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    settings, client, champion = worker(
        job.project.settings, job.project.model_name, job.model_version, job.bundle_sha256
    )
    for batch in batches:
        for position in batch.column(0).to_pylist():
            chunk = chunks[position]
            rows = score_chunk(settings, client, champion, job, chunk)
            ended.add(rows)
            yield pa.RecordBatch.from_pydict({"chunk": [chunk.number], "rows": [rows]})


def _score_batches(
    project: BatchProject, version: int, sha256: str, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    champion = worker(project.settings, project.model_name, version, sha256)[2]
    for batch in batches:
        yield score_batch(project, champion, batch)


def _tell(done: Callable[[int], None], rows: int) -> int:
    if rows > 0:
        done(rows)
    return max(rows, 0)
