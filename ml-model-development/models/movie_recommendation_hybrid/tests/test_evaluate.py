"""The gate of a recommender: same viewers, fair rows, data read again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import AS_OF, FakeFeatureStore, Trained, make_ratings
from src.evaluate import RecommenderProject, viewers_seen
from src.train import load_training_data

from common_ml_utils.mlflow_utils import RegisteredBundle
from common_ml_utils.promotion.evaluation import compare
from common_ml_utils.recommender_bundle import RecommenderBundle


def candidate(trained: Trained, **changed: object) -> RegisteredBundle[RecommenderBundle]:
    """Return the trained bundle, with other values in its manifest or model."""
    latest = trained.registry.latest()
    bundle = RecommenderBundle.__new__(RecommenderBundle)
    bundle.__dict__.update(latest.bundle.__dict__)
    if "model" in changed:
        bundle.model = changed.pop("model")
    bundle.manifest = latest.bundle.manifest.model_copy(update=changed)
    return replace(latest, bundle=bundle)


def test_the_challenger_is_measured_as_it_was_in_training(trained: Trained) -> None:
    project = RecommenderProject(trained.settings, trained.store)
    measured = project.measure(trained.registry.latest(), None)
    metrics = trained.registry.registered[0][1].metrics
    for name in ("ndcg_at_10", "precision_at_10", "recall_at_10"):
        assert measured.challenger.metrics[name] == pytest.approx(metrics[name])
    assert measured.challenger.support == 80
    assert sum(part.rows for part in measured.challenger.slices.values()) == 80


def test_a_model_that_shuffles_its_movies_is_found_worse(trained: Trained) -> None:
    good = trained.registry.latest()
    arrays = good.bundle.model.arrays
    order = np.random.default_rng(0).permutation(len(arrays.warm))
    shuffled = replace(arrays, ease_factors=arrays.ease_factors[order])
    bad = candidate(trained, model=type(good.bundle.model)(shuffled, good.bundle.model.parameters))
    project = RecommenderProject(trained.settings, trained.store)
    measured = project.measure(bad, good)
    assert measured.pair is not None
    comparison, _ = compare(*measured.pair, "ndcg_at_10", margin=0.005, resamples=200, seed=0)
    assert comparison.upper < 0
    assert comparison.probability_not_worse < 0.1


def test_a_champion_of_another_split_can_not_be_compared(trained: Trained) -> None:
    champion = trained.registry.latest()
    training = champion.bundle.manifest.training.model_copy(update={"rows": 1000})
    measured = RecommenderProject(trained.settings, trained.store).measure(
        champion, candidate(trained, training=training)
    )
    assert measured.pair is None
    assert "the champion was trained on 1000 ratings" in measured.unfair


def test_viewers_whose_future_a_later_champion_saw_are_named(trained: Trained) -> None:
    late = load_training_data(trained.store, trained.settings, AS_OF)
    eager = trained.store.ratings["viewer_id"].value_counts().idxmax()
    begun = trained.store.ratings.query("viewer_id == @eager")["event_timestamp"].iloc[12]
    early = load_training_data(trained.store, trained.settings, begun.to_pydatetime())
    assert viewers_seen(late, early).tolist() == [eager]
    assert len(viewers_seen(early, late)) == 0
    assert len(viewers_seen(late, late)) == 0


def outcomes(trained: Trained, store: FakeFeatureStore, **changed: object) -> dict[str, str]:
    project = RecommenderProject(trained.settings, store)
    return {found.guard: found.outcome for found in project.findings(candidate(trained, **changed), None)}


def test_an_honest_challenger_passes_every_guard(trained: Trained) -> None:
    assert outcomes(trained, trained.store) == {
        "signature": "pass",
        "staleness": "pass",
        "data": "pass",
        "latency": "pass",
    }


def test_ratings_that_were_altered_after_training_are_refused(trained: Trained) -> None:
    flipped = make_ratings()
    flipped.loc[flipped.index[::100], "rating"] = 0.5
    assert outcomes(trained, FakeFeatureStore(flipped))["data"] == "refuse"


def test_a_model_trained_on_its_holdout_is_refused(trained: Trained) -> None:
    training = trained.registry.latest().bundle.manifest.training
    everything = training.model_copy(update={"rows": len(make_ratings())})
    assert outcomes(trained, trained.store, training=everything)["data"] == "refuse"


def test_a_stale_training_is_refused(trained: Trained) -> None:
    newer = (
        make_ratings()
        .tail(1)
        .assign(
            event_timestamp=pd.Timestamp("2017-03-01", tz="UTC"),
            label_known_at=pd.Timestamp("2017-03-01", tz="UTC"),
        )
    )
    store = FakeFeatureStore(pd.concat([make_ratings(), newer.assign(movie_id=160)]))
    assert outcomes(trained, store)["staleness"] == "refuse"
