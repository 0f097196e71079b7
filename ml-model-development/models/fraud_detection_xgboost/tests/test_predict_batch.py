"""Batch prediction of transactions: the day's plan, and on the stack the same scores from both engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psycopg
import pyarrow.parquet as pq
import pytest
from conftest import FakeFeatureStore
from pydantic import ValidationError
from src import predict_batch
from src.config import FEATURE_SERVICE, FraudHyperparameters, FraudTrainingSettings
from src.data_loader import load_day
from src.train import fit_xgboost

from common_ml_utils.batch.command import predict_day
from common_ml_utils.batch.parquet import score_parquet
from common_ml_utils.batch.prediction import BatchPrediction, BatchProject
from common_ml_utils.batch.spark import SparkEngine, score_parquet_on_spark, session
from common_ml_utils.drift_reference import reference_statistics
from common_ml_utils.errors import EmptyWindowError, FeatureStoreError, ModelDevelopmentError, RegistryError
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import ModelRegistry, RegisteredBundle, TrainingRun
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.release_bundle import (
    BundleContents,
    ReasonCode,
    ReleaseBundle,
    TrainingInterval,
    golden_rows,
    write_bundle,
)
from common_ml_utils.training_backends import DistributionSettings

DAY = date(2024, 2, 9)


class CountingStore(FakeFeatureStore):
    """Answers how many transactions there are at each moment of a day."""

    def query(self, statement: str, parameters: object = ()) -> list[dict[str, object]]:
        assert 'FROM "raw"."transactions"' in statement
        times = self.transactions["event_timestamp"]
        day = times[times.map(lambda time: f"{time:%Y-%m-%d}" in statement.split("<", maxsplit=1)[0])]
        return [
            {"moment": moment.to_pydatetime(), "n": int(n)}
            for moment, n in day.value_counts(sort=False).items()
        ]


def test_the_chunks_fetch_each_transaction_of_the_day_once(transactions: pd.DataFrame) -> None:
    store = CountingStore(transactions)
    plan = predict_batch.plan_day(store, store.published, DAY, 7)
    parts = [
        store.features_as_of(store.published, chunk.entities, [(chunk.start, chunk.end)])
        for chunk in plan.chunks
    ]
    assert len(parts) > 5
    assert [len(part) for part in parts] == [chunk.rows for chunk in plan.chunks]
    fetched = pd.concat(parts, ignore_index=True)
    pd.testing.assert_frame_equal(
        fetched.sort_values("transaction_id", ignore_index=True), load_day(store, store.published, DAY)
    )


def test_a_day_that_is_not_loaded_is_refused(transactions: pd.DataFrame) -> None:
    store = CountingStore(transactions)
    with pytest.raises(
        EmptyWindowError, match=r"raw\.transactions has no rows of 2025-01-01: load the day first"
    ):
        predict_batch.plan_day(store, store.published, date(2025, 1, 1), 7)


def test_an_unreachable_registry_is_one_clear_error(settings: FraudTrainingSettings) -> None:
    with pytest.raises(RegistryError):
        predict_day(predict_batch.project(), settings, DAY)


def test_a_wrong_date_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict_batch.main(["--date", "yesterday"])
    assert "--date" in capsys.readouterr().err


@dataclass(frozen=True)
class Stack:
    """The stack, and a champion of this test's own that was fitted on one day's vectors."""

    settings: FraudTrainingSettings
    client: FeatureStoreClient
    registry: ModelRegistry
    project: BatchProject
    champion: RegisteredBundle
    day: date
    vectors: pd.DataFrame

    def prediction(self, **changes: object) -> BatchPrediction:
        """Return a run in chunks so small that there are several."""
        run = BatchPrediction(self.project, self.settings, self.registry, self.client, chunk_rows=300)
        return replace(run, **changes)

    def scores(self) -> pd.Series:
        """Return the day's published scores by transaction."""
        with psycopg.connect(**self.settings.decisions_db.connection_arguments()) as connection:
            rows = connection.execute(
                "SELECT entity_key::bigint, score FROM scoring.batch_scores"
                " WHERE model_name = %s AND data_date = %s ORDER BY 1",
                [self.project.model_name, self.day],
            ).fetchall()
        return pd.Series(dict(rows), dtype="float64")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    try:
        settings = FraudTrainingSettings()
    except ValidationError as error:
        missing = sorted(str(problem["loc"][0]) for problem in error.errors())
        pytest.fail(f"the stack's environment is not loaded (source its stack.env); not set: {missing}")
    client = FeatureStoreClient(settings.feature_store_db)
    try:
        contract, day = client.contract(FEATURE_SERVICE), client.loaded_days()[1]
    except FeatureStoreError as error:
        pytest.fail(f"load transactions, run dbt and apply Feast first: {error}")
    name = f"test-fraud-batch-{uuid.uuid4().hex[:8]}"
    vectors = load_day(client, contract, day)
    labels = (vectors["tx_amount"] > vectors["tx_amount"].quantile(0.9)).to_numpy().astype(int)
    preprocessing = Preprocessing.fit(contract.service, vectors)
    model = fit_xgboost(
        preprocessing.transform(vectors), labels, FraudHyperparameters(n_estimators=30, max_depth=3)
    )
    moment = datetime.combine(day, datetime.min.time(), UTC)
    folder = tmp_path_factory.mktemp("release") / "bundle"
    contents = BundleContents(
        model_name=name,
        model=model,
        contract=contract,
        preprocessing=preprocessing,
        thresholds={"review": 0.2, "decline": 0.8},
        reference=reference_statistics(
            vectors, preprocessing, model.scores(preprocessing.transform(vectors))
        ),
        golden=golden_rows(vectors, preprocessing, model),
        reason_codes={
            feature: ReasonCode(code=feature.upper(), text=feature) for feature in preprocessing.names
        },
        training=TrainingInterval(
            start=moment - timedelta(days=2),
            end=moment - timedelta(days=1),
            holdout_start=moment - timedelta(days=1),
            holdout_end=moment,
            rows=len(vectors),
            positives=int(labels.sum()),
        ),
        label_policy_version="1",
        git_commit="none",
        data_version="d" * 64,
    )
    bundle = ReleaseBundle.load(folder, write_bundle(contents, folder))
    registry = ModelRegistry(settings.mlflow_tracking_uri)
    run = TrainingRun(experiment=name, run_name=name, parameters={}, metrics={}, tags={}, figures={})
    version = registry.register(folder, bundle, run)
    registry.promote(name, version)
    project = replace(predict_batch.project(), model_name=name)
    yield Stack(settings, client, registry, project, RegisteredBundle(name, version, bundle), day, vectors)
    with psycopg.connect(**settings.decisions_db.connection_arguments()) as connection:
        for table in ("batch_scores", "batch_scores_staging"):
            connection.execute(f"DELETE FROM scoring.{table} WHERE model_name = %s", [name])
        connection.execute("DELETE FROM scoring.batch_runs WHERE model_name = %s", [name])
    tracking = mlflow.MlflowClient(tracking_uri=settings.mlflow_tracking_uri)
    tracking.delete_registered_model(name)
    if experiment := tracking.get_experiment_by_name(name):
        tracking.delete_experiment(experiment.experiment_id)


KILLED = """
import os, signal, sys
from dataclasses import replace
from datetime import date
from src import predict_batch
from common_ml_utils.batch import prediction
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import ModelRegistry

whole = prediction.score_chunk
def twice_then_killed(*arguments):
    if arguments[-1].number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
prediction.score_chunk = twice_then_killed
project = replace(predict_batch.project(), model_name=sys.argv[1])
settings = project.settings()
prediction.BatchPrediction(
    project, settings, ModelRegistry(settings.mlflow_tracking_uri),
    FeatureStoreClient(settings.feature_store_db), chunk_rows=300,
).predict(date.fromisoformat(sys.argv[2]))
"""


@pytest.mark.integration
def test_a_killed_run_continues_and_gives_the_scores_of_one_that_was_not(stack: Stack) -> None:
    expected = pd.Series(
        stack.champion.bundle.score_frame(stack.vectors), index=stack.vectors["transaction_id"].to_numpy()
    )
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, stack.project.model_name, str(stack.day)], env=os.environ, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert stack.scores().empty, "nobody sees half a day"
    outcome = stack.prediction().predict(stack.day)
    assert 0 < outcome.continued < outcome.rows == outcome.entities == len(expected)
    pd.testing.assert_series_equal(stack.scores(), expected.sort_index(), check_names=False, check_exact=True)
    again = stack.prediction().predict(stack.day)
    assert (again.rows, again.continued) == (outcome.rows, 0)
    pd.testing.assert_series_equal(stack.scores(), expected.sort_index(), check_names=False, check_exact=True)


@pytest.fixture(scope="module")
def spark() -> Iterator[None]:
    """One session for all tests: a worker that has loaded the champion keeps it."""
    with session(DistributionSettings()):
        yield


@pytest.mark.integration
@pytest.mark.usefixtures("spark")
def test_spark_gives_the_same_scores_into_the_table_and_into_files(stack: Stack, tmp_path: Path) -> None:
    distribution = DistributionSettings()
    outcome = stack.prediction(engine=SparkEngine(distribution)).predict(stack.day)
    expected = stack.champion.bundle.score_frame(stack.vectors)
    published = stack.scores()
    assert outcome.rows == len(expected) == len(published)
    keys = stack.vectors["transaction_id"].to_numpy()
    np.testing.assert_allclose(published.loc[keys], expected, rtol=0, atol=1e-12)

    source = tmp_path / "vectors.parquet"
    stack.vectors.to_parquet(source, index=False)
    rows = score_parquet_on_spark(
        stack.project, stack.champion, str(source), str(tmp_path / "spark"), distribution
    )
    assert rows == score_parquet(stack.project, stack.champion, source, tmp_path / "local") == len(expected)
    both = [
        pq.read_table(tmp_path / engine).to_pandas().sort_values("transaction_id", ignore_index=True)
        for engine in ("local", "spark")
    ]
    np.testing.assert_allclose(both[0]["score"], both[1]["score"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(both[0]["transaction_id"], both[1]["transaction_id"])
    assert set(both[0]) == set(both[1])


@pytest.mark.integration
@pytest.mark.usefixtures("spark")
def test_an_error_in_a_spark_worker_is_named(stack: Stack, tmp_path: Path) -> None:
    stack.vectors.head(20).assign(tx_amount=-1.0).to_parquet(tmp_path / "bad.parquet", index=False)
    with pytest.raises(ModelDevelopmentError, match=r"could not score the rows: .*tx_amount < 0"):
        score_parquet_on_spark(
            stack.project,
            stack.champion,
            str(tmp_path / "bad.parquet"),
            str(tmp_path / "out"),
            DistributionSettings(),
        )
