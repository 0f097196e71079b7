"""Evaluate the recommender: `python -m src.evaluate gate`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

import numpy as np

from common_ml_utils.command_line import run_command
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import ModelRegistry, RegisteredBundle
from common_ml_utils.promotion.evaluation import Evaluation, mean_evaluation
from common_ml_utils.promotion.gate import Measured, PromotionGate
from common_ml_utils.promotion.guards import OK, REFUSE, Finding
from common_ml_utils.promotion.ledger import PromotionLedger
from common_ml_utils.promotion.training_guards import latency_finding, signature_finding, staleness_finding
from common_ml_utils.recommender_bundle import RecommenderBundle
from common_ml_utils.release_bundle import Manifest
from src.config import IDENTITY, K, RecommenderSettings
from src.evaluation import Audience
from src.measures import Lists, histories_of, viewer_measures
from src.slices import viewer_slices
from src.train import TrainingData, load_training_data

Candidate: TypeAlias = RegisteredBundle[RecommenderBundle]
ROUNDS, CALLS_A_ROUND = 10, 20


def gate(settings: RecommenderSettings) -> None:
    """Judge the challenger against the champion on what viewers rated last; move the alias if it earns it."""
    registry = ModelRegistry(settings.mlflow_tracking_uri)
    registry.check_reachable()
    PromotionGate(
        model_name=IDENTITY.model_name,
        registry=registry,
        ledger=PromotionLedger(settings.decisions_db),
        settings=settings.gate,
        project=RecommenderProject(settings, FeatureStoreClient(settings.feature_store_db)),
        report=settings.reports_dir / IDENTITY.report / "gate.json",
    ).run()


@dataclass
class RecommenderProject:
    """A `GateProject`: nDCG@10 of each viewer, viewers are drawn; the data is read again."""

    settings: RecommenderSettings
    client: FeatureStoreClient
    _fetched: dict[datetime, TrainingData] = field(default_factory=dict)

    def measure(self, challenger: Candidate, champion: Candidate | None) -> Measured:
        """Measure both on the challenger's holdout, without viewers whose part of it the champion saw."""
        data = self._data(challenger.bundle.manifest)
        audience = self._audience(data)
        whole = evaluation_of(challenger.bundle, data, audience)
        if champion is None:
            return Measured(whole)
        theirs = self._data(champion.bundle.manifest)
        rows = champion.bundle.manifest.training.rows
        if rows != len(theirs.split.training):
            unfair = (
                f"the champion was trained on {rows} ratings, its split gives {len(theirs.split.training)}:"
                " what it saw of the holdout is not known"
            )
            return Measured(whole, unfair=unfair)
        seen = viewers_seen(theirs, data)
        fair = ~np.isin(audience.viewers, seen)
        if fair.sum() < self.settings.gate.slice_support:
            return Measured(
                whole, unfair=f"the champion was fitted on the holdout of {(~fair).sum()} viewers"
            )
        left = Audience(audience.viewers[fair], audience.histories[fair], audience.relevant[fair])
        pair = evaluation_of(champion.bundle, data, left), evaluation_of(challenger.bundle, data, left)
        notes = (
            (f"{(~fair).sum()} viewers are left out: the champion saw their holdout",) if len(seen) else ()
        )
        return Measured(whole, pair, notes=notes)

    def findings(self, challenger: Candidate, champion: Candidate | None) -> Sequence[Finding]:
        """Return what the guards of bundle and training data found."""
        manifest, contract = challenger.bundle.manifest, challenger.bundle.contract
        newest = self.client.query("SELECT max(event_timestamp) AS newest FROM labels.fct_movie_ratings")
        data = self._data(manifest)
        histories = self._histories(data)
        timed = [timed_us(challenger.bundle, histories)]
        timed += [timed_us(champion.bundle, histories)] if champion else []
        return [
            signature_finding(contract, data.contract),
            staleness_finding(manifest.training, newest[0]["newest"], timedelta(), self.settings.gate),
            data_finding(manifest, data),
            latency_finding(timed[0], timed[1] if champion else None, self.settings.gate),
        ]

    def _data(self, manifest: Manifest) -> TrainingData:
        """Return a training's data, fetched again as of the time it was trained for."""
        as_of = manifest.training.holdout_end
        if as_of not in self._fetched:
            self._fetched[as_of] = load_training_data(self.client, self.settings, as_of)
        return self._fetched[as_of]

    def _audience(self, data: TrainingData) -> Audience:
        split = data.split
        return Audience.of(data.viewers, data.matrix(split.training), data.matrix(split.holdout))

    def _histories(self, data: TrainingData) -> list[np.ndarray]:
        rows = self._audience(data).histories[:CALLS_A_ROUND]
        return [data.catalogue.movie_ids[history] for history in histories_of(rows)]


def evaluation_of(bundle: RecommenderBundle, data: TrainingData, audience: Audience) -> Evaluation:
    """Return nDCG, precision and recall at 10 of each viewer, and the slices by history."""
    ids = data.catalogue.movie_ids
    lists = bundle.recommend([ids[history] for history in histories_of(audience.histories)], K).movie_ids
    at = np.minimum(np.searchsorted(ids, lists), len(ids) - 1)
    positions = np.where(ids[at] == lists, at, -1)  # a movie that is listed no more is a miss
    return mean_evaluation(
        viewer_measures(Lists(positions, audience.relevant)),
        units=audience.viewers,
        slices=viewer_slices(np.diff(audience.histories.indptr)),
        metric=f"ndcg_at_{K}",
        rows=int(audience.relevant.nnz),
    )


def viewers_seen(champion: TrainingData, challenger: TrainingData) -> np.ndarray:
    """Return the viewers of whose holdout (the challenger's) the champion was fitted on a part."""
    keys = ["viewer_id", "movie_id"]
    both = challenger.split.holdout[keys].merge(champion.split.training[keys], on=keys)
    return np.unique(both["viewer_id"])


def data_finding(manifest: Manifest, data: TrainingData) -> Finding:
    """Refuse a model whose training data is not what the feature store has for the same time."""
    training = data.split.training
    if manifest.data_version != data.data_version:
        message = (
            f"the ratings or movies of the training are not those known at {data.as_of.isoformat()}:"
            f" data version {manifest.data_version[:12]}, read again it is {data.data_version[:12]}"
        )
        return Finding("data", REFUSE, message)
    if manifest.training.rows != len(training):
        message = (
            f"the model was trained on {manifest.training.rows} ratings, the split gives {len(training)}:"
            " was the holdout trained on?"
        )
        return Finding("data", REFUSE, message, manifest.training.rows, len(training))
    message = (
        f"{len(data.ratings):,} ratings and {len(data.movies):,} movies, read again, are those trained on"
    )
    return Finding("data", OK, message)


def timed_us(bundle: RecommenderBundle, histories: Sequence[np.ndarray]) -> float:
    """Return the median time of one viewer's list, in microseconds, the best of several rounds."""
    medians = []
    for _ in range(ROUNDS):
        taken = []
        for history in histories:
            start = time.perf_counter()
            bundle.recommend([history], K)
            taken.append(time.perf_counter() - start)
        medians.append(float(np.median(taken)))
    return min(medians) * 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m src.evaluate", description=__doc__)
    parser.add_argument("evaluation", choices=["gate"])
    parser.parse_args(arguments)
    return run_command(RecommenderSettings, gate)


if __name__ == "__main__":
    sys.exit(main())
