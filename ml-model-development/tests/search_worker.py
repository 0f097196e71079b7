"""A worker of a search on made-up rows, to be run as a process of its own.

The rows, folds and space are the same in every process; only how long a step takes differs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import xgboost
from pydantic import BaseModel, ConfigDict, Field

from common_ml_utils.hyperparameter_search import (
    SearchFold,
    SearchProblem,
    SearchSettings,
    Watch,
    run_search,
    xgboost_watch,
)
from common_ml_utils.search.space import Range, SearchSpace
from common_ml_utils.settings import PlatformSettings


class Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=20, gt=0)
    eta: float = Field(default=0.3, gt=0, le=1)
    depth: int = Field(default=2, gt=0)
    start: float | None = Field(default=None, gt=0, lt=1)
    seed: int = 0


SPACE = SearchSpace(
    Parameters(), {"eta": Range(low=0.0001, high=0.5, log=True), "depth": Range(low=1, high=5)}
)


def made_up_problem(seconds_a_step: float = 0.0, flipped: int = 0, experiment: str = "none") -> SearchProblem:
    rng = np.random.default_rng(5)
    matrix = rng.normal(size=(900, 6))
    labels = (rng.random(900) < 1 / (1 + np.exp(2 - 2 * matrix[:, 0] * matrix[:, 1]))).astype(int)
    labels[:flipped] = 1 - labels[:flipped]

    def fold(number: int) -> SearchFold:
        unseen = np.arange(900) % 2 == number

        def scores(parameters: Parameters, watch: Watch) -> np.ndarray:
            def slow(values: np.ndarray) -> None:
                time.sleep(seconds_a_step)
                watch(values)

            settings = {"objective": "binary:logistic", "eta": parameters.eta, "max_depth": parameters.depth}
            booster = xgboost.train(
                {**settings, "nthread": 1},
                xgboost.DMatrix(matrix[~unseen], labels[~unseen]),
                num_boost_round=parameters.rounds,
                callbacks=[xgboost_watch(matrix[unseen], parameters.rounds, slow)],
            )
            return booster.inplace_predict(matrix[unseen])

        return SearchFold(f"half {number}", labels[unseen], scores)

    return SearchProblem(
        report="made-up",
        experiment=experiment,
        space=SPACE,
        folds=[fold(0), fold(1)],
        metric="average_precision",
        data_version=f"flipped {flipped}",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("schema")
    parser.add_argument("study")
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--seconds-a-step", type=float, default=0.0)
    options = parser.parse_args()
    settings = PlatformSettings().model_copy(update={"reports_dir": options.reports})
    problem = made_up_problem(options.seconds_a_step, experiment=options.study)
    wanted = SearchSettings(metric="average_precision", trials=options.trials, heartbeat_seconds=1)
    run_search(settings, wanted, lambda: problem, options.study, options.schema)


if __name__ == "__main__":
    main()
