"""The recommender on the running stack; it needs the movies loaded, tables built and Feast applied."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psycopg
import pytest
from psycopg import sql
from pydantic import ValidationError
from src import evaluate, train
from src.config import FEATURE_SERVICE, IDENTITY, RecommenderSettings
from src.data_loader import load_movies, load_ratings

from common_ml_utils import notebooks
from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient
from common_ml_utils.mlflow_utils import STAGING, ModelRegistry
from common_ml_utils.promotion.ledger import PromotionLedger
from common_ml_utils.recommender_bundle import RecommenderBundle

pytestmark = pytest.mark.integration
PROJECT = Path(__file__).parents[1]
SOME_MOVIES = 40


@dataclass(frozen=True)
class Stack:
    """One training and one verdict under names of their own."""

    settings: RecommenderSettings
    client: FeatureStoreClient
    name: str
    as_of: datetime
    outcome: train.TrainingOutcome


def stack_settings() -> RecommenderSettings:
    try:
        return RecommenderSettings()
    except ValidationError as error:
        missing = sorted(str(problem["loc"][0]) for problem in error.errors())
        pytest.fail(f"the stack's environment is not loaded (source its stack.env); not set: {missing}")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    real, folder = stack_settings(), tmp_path_factory.mktemp("recommendation")
    settings = real.model_copy(
        update={
            "data_dir": folder / "data",
            "reports_dir": folder / "reports",
            "split": real.split.model_copy(update={"bootstrap_resamples": 100}),
        }
    )
    client = FeatureStoreClient(settings.feature_store_db)
    newest = client.query("SELECT max(label_known_at) AS newest FROM labels.fct_movie_ratings")[0]["newest"]
    assert isinstance(newest, datetime), "load the movies, run dbt and apply Feast first"
    as_of = newest + timedelta(seconds=1)
    name = f"test-recommendation-{uuid.uuid4().hex[:8]}"
    schema = name.replace("-", "_")
    identity = replace(IDENTITY, model_name=name, experiment=name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.RecommenderTrainer, "identity", identity)
        patch.setattr(evaluate, "IDENTITY", identity)
        patch.setattr(evaluate, "PromotionLedger", functools.partial(PromotionLedger, schema=schema))
        outcome = train.RecommenderTrainer(settings, client, as_of).train()
        yield Stack(settings, client, name, as_of, outcome)
    with psycopg.connect(**settings.decisions_db.connection_arguments()) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
    mlflow_client = mlflow.MlflowClient(tracking_uri=settings.mlflow_tracking_uri)
    mlflow_client.delete_registered_model(name)
    if experiment := mlflow_client.get_experiment_by_name(name):
        mlflow_client.delete_experiment(experiment.experiment_id)


def test_it_beats_popularity_and_sar_on_viewers_and_popularity_on_new_movies(stack: Stack) -> None:
    report = json.loads((stack.settings.reports_dir / "recommendation" / "train.json").read_text())
    known = {name: report["known_viewers"][name]["ndcg_at_10"] for name in ("hybrid", "SAR", "popularity")}
    assert known["hybrid"]["value"] >= 0.13
    assert known["hybrid"]["lower"] > known["SAR"]["lower"]
    assert known["hybrid"]["lower"] > known["popularity"]["upper"]
    new = report["new_movies"]
    assert new["better_than_popularity"]["lower"] > 0
    assert new["hybrid"]["ndcg_at_10"]["lower"] > new["random order"]["ndcg_at_10"]["upper"]


def test_the_gate_promotes_the_first_model_and_the_registry_gives_it_back(stack: Stack) -> None:
    evaluate.gate(stack.settings)
    verdict = json.loads((stack.settings.reports_dir / "recommendation" / "gate.json").read_text())
    assert (verdict["verdict"], verdict["champion_after"]) == ("promote", stack.outcome.version), verdict
    loaded = ModelRegistry(stack.settings.mlflow_tracking_uri).load(stack.name, "champion")
    assert loaded is not None
    assert isinstance(loaded.bundle, RecommenderBundle)
    assert loaded.bundle.sha256 == stack.outcome.bundle_sha256
    evaluate.gate(stack.settings)
    again = json.loads((stack.settings.reports_dir / "recommendation" / "gate.json").read_text())
    assert again["verdict"] == "refuse"
    assert "byte for byte" in again["reasons"][0]


def test_mlflow_answers_with_the_same_lists(stack: Stack) -> None:
    mlflow.set_tracking_uri(stack.settings.mlflow_tracking_uri)
    served = mlflow.pyfunc.load_model(f"models:/{stack.name}@{STAGING}")
    registered = ModelRegistry(stack.settings.mlflow_tracking_uri).load(stack.name, STAGING)
    assert registered is not None
    histories = [[1, 2, 3], [318, 296, 593]]
    answer = served.predict(pd.DataFrame({"movie_ids": histories}), params={"k": 5})
    expected = registered.bundle.recommend(histories, 5)
    assert np.array_equal(np.array(answer["movie_ids"].tolist()), expected.movie_ids)


def test_movies_have_the_feature_services_own_values(stack: Stack) -> None:
    """The table, read as of a time, gives what Feast's point-in-time join gives."""

    class SomeMovies(EntityQuery):
        def statement(self, start: datetime, end: datetime) -> str:
            time = f"timestamptz '{start.isoformat()}'"
            return (
                f"SELECT movie_id, 0::bigint AS viewer_id, {time} AS event_timestamp,"
                f" extract(epoch FROM {time})::float8 AS request_timestamp"
                f" FROM (SELECT movie_id FROM raw.movies ORDER BY movie_id LIMIT {SOME_MOVIES}) AS movies"
            )

    contract = stack.client.contract(FEATURE_SERVICE)
    query = SomeMovies(("raw", "movies"), ("movie_id", "viewer_id"), "movie_id", {"request_timestamp": ""})
    served = stack.client.features_as_of(contract, query, [(stack.as_of, stack.as_of)])
    ours = load_movies(stack.client, contract, stack.as_of).set_index("movie_id").loc[served["movie_id"]]
    assert len(served) == SOME_MOVIES
    for name in ours.columns:
        assert ours[name].to_numpy() == pytest.approx(served[name].to_numpy(dtype=float), nan_ok=True), name


def test_only_what_was_known_at_the_time_is_loaded(stack: Stack) -> None:
    time = datetime(2006, 1, 1, tzinfo=UTC)
    ratings = load_ratings(stack.client, time)
    known = "SELECT count(*) AS n FROM raw.ratings WHERE rated_at < %s AND known_at <= %s"
    assert len(ratings) == stack.client.query(known, [time, time])[0]["n"]
    assert 0 < len(ratings) < len(load_ratings(stack.client, stack.as_of))
    assert ratings["event_timestamp"].max() < time
    contract = stack.client.contract(FEATURE_SERVICE)
    movies = load_movies(stack.client, contract, time)
    assert set(ratings["movie_id"]) <= set(movies["movie_id"])
    listed = stack.client.query(
        "SELECT count(*) AS n FROM features.fct_movie_profile WHERE event_timestamp <= %s", [time]
    )
    assert len(movies) == listed[0]["n"] < len(load_movies(stack.client, contract, stack.as_of))


def test_a_time_before_all_ratings_is_an_empty_window_and_registers_nothing(stack: Stack) -> None:
    trainer = train.RecommenderTrainer(stack.settings, stack.client, datetime(1990, 1, 1, tzinfo=UTC))
    with pytest.raises(EmptyWindowError, match="no rating known at 1990"):
        trainer.train()
    client = mlflow.MlflowClient(tracking_uri=stack.settings.mlflow_tracking_uri)
    assert len(client.search_model_versions(f"name='{stack.name}'")) == 1


def test_with_the_registry_down_the_command_fails_in_one_line(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINING_MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert train.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("RegistryError: the model registry at http://127.0.0.1:9 does not answer")
    assert error.count("\n") == 1


def test_the_notebook_runs_and_shows_what_is_recommended(stack: Stack) -> None:
    [path] = notebooks.notebooks_in(PROJECT / "notebooks")
    executed = notebooks.execute(path)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    table = outputs[-1].data["text/plain"]
    assert all(name in table for name in ("space", "romance", "new viewer"))
