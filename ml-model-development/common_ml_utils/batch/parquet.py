"""Batch prediction from files: vectors in Parquet in, scores in Parquet out, a batch of rows at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from tqdm import tqdm

from common_ml_utils.batch.prediction import CHUNK_ROWS, BatchProject
from common_ml_utils.data_schemas.training_data_contract import typed_feature
from common_ml_utils.errors import DataError, EmptyWindowError, SchemaMismatchError
from common_ml_utils.mlflow_utils import RegisteredBundle

OUTPUT_FIELDS = ("model_version", "bundle_sha256", "score")


def score_parquet(
    project: BatchProject, champion: RegisteredBundle, source: Path, out: Path, batch_rows: int = CHUNK_ROWS
) -> int:
    """Score a file or folder of vectors into the folder `out`, and return the rows.

    Grain: one row a row of the source: its columns that are no features, then version, bundle and score.
    `out` is replaced when all of it is written; until then it stays as it was.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist")
    try:
        dataset = ds.dataset(source, format="parquet")
        total = dataset.count_rows()
    except (pa.ArrowInvalid, OSError) as error:
        raise SchemaMismatchError(f"{source} can't be read as Parquet: {error}") from error
    if not total:
        raise EmptyWindowError(f"{source} has no rows")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with tqdm(total=total, desc=out.name, unit="row", disable=None) as bar:
        writer = None
        try:
            for batch in dataset.to_batches(batch_size=batch_rows):
                if not batch.num_rows:
                    continue
                scored = score_batch(project, champion, batch)
                if writer is None:
                    writer = pq.ParquetWriter(partial / "part-00000.parquet", scored.schema)
                writer.write_batch(scored)
                bar.update(batch.num_rows)
        finally:
            if writer is not None:
                writer.close()
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)
    return total


def score_batch(project: BatchProject, champion: RegisteredBundle, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch's columns that are no features, with version, bundle and score.

    Raises SchemaMismatchError for features that are missing, of another type, or impossible.
    """
    service = champion.bundle.contract.service
    missing = [name for name in service.feature_names if name not in batch.schema.names]
    if missing:
        raise SchemaMismatchError(f"features are missing: {missing}")
    frame = pd.DataFrame({name: batch.column(name).to_pandas() for name in service.feature_names})
    for feature in service.features:
        frame[feature.name] = typed_feature(frame[feature.name], feature)
    scores = np.asarray(champion.bundle.score_frame(project.check(frame)), dtype=np.float64)
    kept = [name for name in batch.schema.names if name not in set(service.feature_names)]
    versions = {
        "model_version": pa.array(np.full(len(frame), champion.version, dtype=np.int32)),
        "bundle_sha256": pa.array([champion.bundle.sha256] * len(frame), pa.string()),
        "score": pa.array(scores),
    }
    return pa.RecordBatch.from_arrays(
        [*(batch.column(name) for name in kept), *versions.values()], names=[*kept, *versions]
    )
