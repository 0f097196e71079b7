"""Train the recommender and register it as challenger: `python -m src.train [--as-of T]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from common_ml_utils.command_line import run_command, utc_time
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.data_versions import dvc_version
from common_ml_utils.drift_reference import numeric_reference
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.hybrid_recommender import BlendWeights, HybridRecommender
from common_ml_utils.mlflow_utils import ModelRegistry, TrainingRun, git_commit
from common_ml_utils.recommender_bundle import (
    GoldenList,
    RecommenderBundle,
    RecommenderContents,
    golden_list,
    write_recommender_bundle,
)
from common_ml_utils.release_bundle import TrainingInterval
from common_ml_utils.reports import StepClock
from common_ml_utils.training_sets import TrainingSetStore, data_version
from src.card import OWNER, PURPOSE, TrainingFacts, card_files, write_training_report
from src.config import FEATURE_SERVICE, IDENTITY, LABEL_POLICY_VERSION, RecommenderSettings
from src.data_loader import catalogue_of, load_movies, load_ratings
from src.evaluation import (
    Audience,
    HoldoutFigures,
    Recipe,
    measure_holdout,
)
from src.hybrid import Catalogue, Trial, choose_blend, fit_hybrid
from src.measures import histories_of
from src.preprocessor import Split, interactions, split_by_time

DATASET = "movies"
FIRST_BLEND = BlendWeights(0.0, 0.0, 0.0, 0.0, 0.25, 10.0)
GOLDEN_VIEWERS = 16


@dataclass(frozen=True)
class TrainingData:
    """What was known at `as_of`: ratings cut by time for each viewer, and the movies."""

    as_of: datetime
    contract: PublishedContract
    ratings: pd.DataFrame
    split: Split
    movies: pd.DataFrame
    catalogue: Catalogue
    viewers: np.ndarray
    data_version: str

    def matrix(self, ratings: pd.DataFrame) -> csr_matrix:
        """Return who rated what, shape (viewers, movies)."""
        return interactions(ratings, self.viewers, self.catalogue.movie_ids)

    def interval(self) -> TrainingInterval:
        """Return the times of the training ratings and of the holdout's, which overlap between viewers."""
        training, holdout = self.split.training, self.split.holdout
        first, last = training["event_timestamp"].min(), training["event_timestamp"].max()
        return TrainingInterval(
            start=first.to_pydatetime(),
            end=last.to_pydatetime(),
            holdout_start=holdout["event_timestamp"].min().to_pydatetime(),
            holdout_end=self.as_of,
            rows=len(training),
            positives=len(training),
        )


@dataclass(frozen=True)
class TrainingOutcome:
    """The challenger that training registered."""

    version: int
    bundle_sha256: str
    metrics: dict[str, float]


class RecommenderTrainer:
    """The recipe: load -> choose -> fit -> evaluate -> bundle -> register -> report."""

    identity = IDENTITY

    def __init__(self, settings: RecommenderSettings, client: FeatureStoreClient, as_of: datetime) -> None:
        self.settings, self.client, self.as_of = settings, client, as_of
        self.registry = ModelRegistry(settings.mlflow_tracking_uri)
        self.training_sets = TrainingSetStore(settings.data_dir / "training_sets" / self.identity.report)
        self.clock = StepClock()

    def train(self) -> TrainingOutcome:
        """Run the recipe and return the registered challenger; nothing is registered when a step fails."""
        self.registry.check_reachable()
        with self.clock.step("load"):
            data = load_training_data(self.client, self.settings, self.as_of)
            self.training_sets.save(data.data_version, data.ratings)
        with self.clock.step("choose"):
            blend, trials = choose_on_validation(data, self.settings)
        with self.clock.step("fit"):
            training = data.matrix(data.split.training)
            model = self._fit(training, data.catalogue, blend)
        with self.clock.step("evaluate"):
            figures = self._evaluate(data, training, model)
        with self.clock.step("register"), tempfile.TemporaryDirectory() as folder:
            bundle = self._bundle(Path(folder) / "bundle", data, training, model)
            facts = self._facts(data, bundle, figures, trials)
            version = self.registry.register(Path(folder) / "bundle", bundle, self._run(data, facts))
        folder_of_reports = self.settings.reports_dir / self.identity.report
        write_training_report(folder_of_reports, facts, version, self.clock.seconds)
        return TrainingOutcome(version, bundle.sha256, figures.metrics())

    def _fit(self, training: csr_matrix, catalogue: Catalogue, blend: BlendWeights) -> HybridRecommender:
        return fit_hybrid(training, catalogue, self.settings.collaborative, self.settings.content, blend)

    def _evaluate(self, data: TrainingData, training: csr_matrix, model: HybridRecommender) -> HoldoutFigures:
        """Measure once on what each viewer rated last, and on movies kept out of everything."""
        settings = self.settings
        audience = Audience.of(data.viewers, training, data.matrix(data.split.holdout))
        return measure_holdout(
            model,
            training,
            audience,
            data.matrix(data.ratings),
            Recipe(data.movies, data.catalogue, settings.collaborative, settings.content, settings.split),
        )

    def _bundle(
        self, folder: Path, data: TrainingData, training: csr_matrix, model: HybridRecommender
    ) -> RecommenderBundle:
        """Write the bundle and load it back as a service would."""
        contents = RecommenderContents(
            model_name=self.identity.model_name,
            model=model,
            contract=data.contract,
            reference=reference_of(model, training),
            golden=golden_lists(model, training, data.movies),
            training=data.interval(),
            label_policy_version=LABEL_POLICY_VERSION,
            git_commit=git_commit(Path(__file__).parents[3]),
            data_version=data.data_version,
        )
        return RecommenderBundle.load(folder, write_recommender_bundle(contents, folder))

    def _facts(
        self,
        data: TrainingData,
        bundle: RecommenderBundle,
        figures: HoldoutFigures,
        trials: list[Trial],
    ) -> TrainingFacts:
        split = data.split
        return TrainingFacts(
            manifest=bundle.manifest,
            bundle_sha256=bundle.sha256,
            contract_sha256=data.contract.sha256,
            figures=figures,
            blend=bundle.model.parameters.blend,
            trials=trials,
            rows={
                "fit": len(split.fit),
                "validation": len(split.validation),
                "holdout": len(split.holdout),
                "viewers": len(data.viewers),
                "movies": len(data.catalogue.movie_ids),
                "movies with a collaborative part": len(bundle.model.arrays.warm),
            },
            parameters=self._parameters(),
        )

    def _run(self, data: TrainingData, facts: TrainingFacts) -> TrainingRun:
        return TrainingRun(
            experiment=self.identity.experiment,
            run_name=f"{self.identity.report}-{data.as_of:%Y%m%d}-{data.data_version[:8]}",
            parameters={
                **self._parameters(),
                **{f"blend.{key}": value for key, value in asdict(facts.blend).items()},
            },
            metrics=facts.figures.metrics(),
            tags={
                "report": self.identity.report,
                "owner": OWNER,
                "as_of": data.as_of.isoformat(),
                "label_policy_version": LABEL_POLICY_VERSION,
                "dvc_version": dvc_version(self.settings.data_dir, self.identity.report),
            },
            figures=facts.plots,
            documents=card_files(facts),
            description=facts.summary(),
            model_description=PURPOSE,
            group=f"{self.identity.report}-{data.data_version[:8]}",
        )

    def _parameters(self) -> dict[str, float | int]:
        return {
            **self.settings.collaborative.model_dump(),
            **self.settings.content.model_dump(),
            **self.settings.split.model_dump(),
        }


def load_training_data(
    client: FeatureStoreClient, settings: RecommenderSettings, as_of: datetime
) -> TrainingData:
    """Fetch and check what was known at `as_of`, and cut each viewer's ratings by time."""
    contract = client.contract(FEATURE_SERVICE)
    ratings = load_ratings(client, as_of)
    movies = load_movies(client, contract, as_of)
    return TrainingData(
        as_of=as_of,
        contract=contract,
        ratings=ratings,
        split=split_by_time(ratings, settings.split),
        movies=movies,
        catalogue=catalogue_of(movies, contract),
        viewers=np.unique(ratings["viewer_id"]),
        data_version=version_of(contract, ratings, movies),
    )


def version_of(contract: PublishedContract, ratings: pd.DataFrame, movies: pd.DataFrame) -> str:
    """Return the identity of a training set: the contract, every rating and every movie's features."""
    return data_version(data_version(DATASET, contract.sha256, movies), contract.sha256, ratings)


def choose_on_validation(
    data: TrainingData, settings: RecommenderSettings
) -> tuple[BlendWeights, list[Trial]]:
    """Fit on each viewer's first ratings and choose the mixture on those that follow; no holdout is seen."""
    fit = data.matrix(data.split.fit)
    audience = Audience.of(data.viewers, fit, data.matrix(data.split.validation))
    model = fit_hybrid(fit, data.catalogue, settings.collaborative, settings.content, FIRST_BLEND)
    return choose_blend(model, audience.histories, audience.relevant, settings.blend)


def reference_of(model: HybridRecommender, training: csr_matrix) -> dict[str, dict[str, object]]:
    """Return how what is recommended to the viewers of the training was distributed, for drift."""
    ids, support = model.arrays.movie_ids, model.arrays.support.astype(np.float64)
    lists = model.recommend([ids[history] for history in histories_of(training)])
    known = lists.movie_ids >= 0
    lengths = np.repeat(np.diff(training.indptr).astype(np.float64), known.sum(axis=1))
    columns = {
        "viewer_rating_count": lengths,
        "movie_rating_count": support[np.searchsorted(ids, lists.movie_ids[known])],
        "score": lists.scores[known],
    }
    return {name: numeric_reference(values) for name, values in columns.items()}


def golden_lists(model: HybridRecommender, training: csr_matrix, movies: pd.DataFrame) -> list[GoldenList]:
    """Pick viewers over the whole range of history lengths, then those who are new, and movies that are."""
    ids = model.arrays.movie_ids
    lengths = np.diff(training.indptr)
    order = np.argsort(lengths, kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, GOLDEN_VIEWERS).astype(int))]
    histories = histories_of(training)
    cases = [golden_list(model, f"viewer of {lengths[v]} movies", ids[histories[v]]) for v in picked]
    some = ids[histories[picked[len(picked) // 2]]]
    features = movies[movies["movie_id"].isin(some[:3])]
    fresh = int(ids[-1]) + 1
    new = features.assign(movie_id=np.arange(fresh, fresh + len(features)))
    unknown = new.head(1).astype({name: "float64" for name in new if name != "movie_id"})
    unknown = unknown.assign(**{name: np.nan for name in new if name != "movie_id"})
    everything = int(len(ids) + len(new))
    return [
        *cases,
        golden_list(model, "new viewer", []),
        golden_list(model, "only movies that nobody knows", [fresh, fresh + 1]),
        golden_list(model, "one movie", some[:1]),
        golden_list(model, "seen movies stay", some, exclude_seen=False),
        golden_list(model, "new movies among all", some, everything, new_movies=new),
        golden_list(model, "a new movie of which nothing is known", some, everything, new_movies=unknown),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m src.train", description=__doc__)
    parser.add_argument("--as-of", type=utc_time, help="ratings known at this time (UTC); default: now")
    options = parser.parse_args(arguments)

    def work(settings: RecommenderSettings) -> None:
        client = FeatureStoreClient(settings.feature_store_db)
        outcome = RecommenderTrainer(settings, client, options.as_of or datetime.now(UTC)).train()
        measured = ", ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
        print(f"{IDENTITY.model_name} version {outcome.version} is the challenger: {measured}")

    return run_command(RecommenderSettings, work)


if __name__ == "__main__":
    sys.exit(main())
