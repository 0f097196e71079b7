"""The Fraud Detection Handbook's protocols: a single split, and four weekly folds tuned on earlier ones.

```
day     80   87   94  101  108  115  122  129  136  143  150  157
        |-train-|-delay|valid|            tuning: folds that begin on days 80, 87, 94 and 101
                       ... |-train-|-delay|-test-|     measuring: days 115, 122, 129 and 136
```
Parameters are chosen on the tuning folds, whose last label is known when the first test week begins; test
weeks are measured once. As published, each measure has its own choice. Source: the Handbook, chapters 3, 5.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from common_ml_utils.data_schemas.training_data_contract import require_both_classes
from common_ml_utils.errors import DataError
from common_ml_utils.evaluation_utils import (
    card_precision_at,
    drop_known_compromised,
    ranking_and_calibration,
)
from src.config import FraudHyperparameters
from src.train import fit_xgboost

WEEK = 7
DELAY_DAYS = 7
MEASURES = ("auc_roc", "average_precision", "card_precision_100")
Parameters = Mapping[str, Any]
Fitted = Callable[[Parameters, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Fold:
    """A week to learn from, a week of delay and a week to measure on; `start` counts from the first day."""

    start: int

    @property
    def training(self) -> tuple[int, int]:
        """Days [first, end) to learn from."""
        return self.start, self.start + WEEK

    @property
    def test(self) -> tuple[int, int]:
        """Days [first, end) to measure on."""
        return self.start + WEEK + DELAY_DAYS, self.start + 2 * WEEK + DELAY_DAYS


SINGLE_SPLIT = Fold(115)
TEST_FOLDS = tuple(Fold(start) for start in (115, 122, 129, 136))
TUNING_FOLDS = tuple(Fold(start) for start in (80, 87, 94, 101))


@dataclass(frozen=True)
class Labelled:
    """All transactions under one definition of features; arrays have one entry, or row, a transaction."""

    features: np.ndarray
    days: np.ndarray
    customers: np.ndarray
    labels: np.ndarray

    def rows(self, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of training and test rows; cards known as compromised are out of the test.

        Raises DataError when the data ends before the fold does, OneClassLabelsError without frauds.
        """
        training, test = self._between(*fold.training), self._between(*fold.test)
        if len(training) == 0 or self.days.max() < fold.test[1] - 1:
            raise DataError(
                f"the fold of day {fold.start} needs the days to {fold.test[1] - 1}, not all there"
            )
        since = self._between(fold.training[0], fold.test[1])
        frauds = since[self.labels[since] == 1]
        known = pd.DataFrame({"customer_id": self.customers[frauds], "day": self.days[frauds]})
        tested = pd.DataFrame({"customer_id": self.customers[test], "day": self.days[test], "row": test})
        left = drop_known_compromised(tested, known, DELAY_DAYS)["row"].to_numpy()
        require_both_classes(pd.Series(self.labels[training]), f"training of day {fold.start}")
        require_both_classes(pd.Series(self.labels[left]), f"test of day {fold.start}")
        return training, left

    def measures(self, rows: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        """Return the three published measures of scores on rows."""
        labels = self.labels[rows]
        ranking = ranking_and_calibration(labels, scores)
        cards = card_precision_at(self.days[rows], self.customers[rows], labels, scores)
        return {**{name: ranking[name] for name in MEASURES[:2]}, "card_precision_100": cards}

    def _between(self, first: int, end: int) -> np.ndarray:
        return np.flatnonzero((self.days >= first) & (self.days < end))


@dataclass(frozen=True)
class Kind:
    """A kind of model: the parameters it comes with, those to choose from, and how it learns and scores."""

    name: str
    default: Parameters
    grid: Sequence[Parameters]
    scores: Fitted


@dataclass(frozen=True)
class Tuned:
    """What tuning chose for one kind of model, and what the choices did on the test folds."""

    kind: str
    tuning: Sequence[tuple[Parameters, dict[str, float]]]
    chosen: Mapping[str, Parameters]
    folds: Mapping[str, Sequence[float]]

    @property
    def means(self) -> dict[str, float]:
        """Each measure's mean over the test folds."""
        return {name: float(np.mean(values)) for name, values in self.folds.items()}


def single_split(data: Labelled, kinds: Iterable[Kind]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the labels and the scores of each kind, as it comes, on the single split's test rows."""
    training, test = data.rows(SINGLE_SPLIT)
    fitted = {}
    for kind in kinds:
        x, y = data.features[training], data.labels[training]
        fitted[kind.name] = (test, kind.scores(kind.default, x, y, data.features[test]))
    return fitted


def prequential(
    data: Labelled,
    kinds: Sequence[Kind],
    name: str,
    tuning: Sequence[Fold] = TUNING_FOLDS,
    test: Sequence[Fold] = TEST_FOLDS,
) -> dict[str, Tuned]:
    """Tune each kind on the tuning folds, then measure what was chosen once on the test folds.

    Raises ValueError when a label of a tuning fold would not be known at the first test day.
    """
    if max(fold.test[1] for fold in tuning) + DELAY_DAYS > min(fold.test[0] for fold in test):
        raise ValueError("the tuning folds' labels are not known when the first test week begins")
    candidates = [(kind, parameters) for kind in kinds for parameters in kind.grid]
    tried = _over_folds(data, candidates, tuning, f"tuning, {name}")
    chosen: dict[str, dict[str, Parameters]] = {}
    tables: dict[str, list[tuple[Parameters, dict[str, float]]]] = {}
    for kind in kinds:
        table = [
            (parameters, {measure: float(np.mean([fold[measure] for fold in folds])) for measure in MEASURES})
            for (other, parameters), folds in zip(candidates, tried, strict=True)
            if other is kind
        ]
        tables[kind.name] = table
        chosen[kind.name] = {
            measure: table[int(np.argmax([values[measure] for _, values in table]))][0]
            for measure in MEASURES
        }
    finalists: list[tuple[Kind, Parameters]] = []
    for kind in kinds:
        for parameters in chosen[kind.name].values():
            if (kind, parameters) not in finalists:
                finalists.append((kind, parameters))
    measured = _over_folds(data, finalists, test, f"test weeks, {name}")
    return {
        kind.name: Tuned(
            kind=kind.name,
            tuning=tables[kind.name],
            chosen=chosen[kind.name],
            folds={
                measure: [fold[measure] for fold in measured[finalists.index((kind, parameters))]]
                for measure, parameters in chosen[kind.name].items()
            },
        )
        for kind in kinds
    }


def _over_folds(
    data: Labelled, models: Sequence[tuple[Kind, Parameters]], folds: Sequence[Fold], name: str
) -> list[list[dict[str, float]]]:
    """Fit and measure every model on every fold, one thread a fit and one fit a core."""
    rows = {fold: data.rows(fold) for fold in folds}

    def measure(job: tuple[tuple[Kind, Parameters], Fold]) -> dict[str, float]:
        (kind, parameters), fold = job
        training, test = rows[fold]
        x, y = data.features[training], data.labels[training]
        return data.measures(test, kind.scores(parameters, x, y, data.features[test]))

    jobs = [(model, fold) for model in models for fold in folds]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = list(tqdm(pool.map(measure, jobs), desc=name, total=len(jobs), unit="fit"))
    return [results[i : i + len(folds)] for i in range(0, len(results), len(folds))]


# --- the kinds of models ----------------------------------------------------------------------------------


def _logistic_regression(
    parameters: Parameters, training: np.ndarray, labels: np.ndarray, test: np.ndarray
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, **parameters))
    return np.asarray(model.fit(training, labels).predict_proba(test)[:, 1])


def _random_forest(
    parameters: Parameters, training: np.ndarray, labels: np.ndarray, test: np.ndarray
) -> np.ndarray:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(random_state=0, n_jobs=1, **parameters)
    return np.asarray(model.fit(training, labels).predict_proba(test)[:, 1])


def _xgboost(
    parameters: Parameters, training: np.ndarray, labels: np.ndarray, test: np.ndarray
) -> np.ndarray:
    return fit_xgboost(training, labels, FraudHyperparameters(**parameters)).scores(test)


@cache
def kinds() -> tuple[Kind, ...]:
    """Return logistic regression, random forest and XGBoost with their grids.

    "As it comes" is the library's default; XGBoost's is that of the release the Handbook used: exact splits,
    and scores that start at 1/2.
    """
    slow = {"n_estimators": 300, "learning_rate": 0.05, "subsample": 0.8}
    return (
        Kind("logistic regression", {}, [{"C": c} for c in (0.01, 0.1, 1, 10)], _logistic_regression),
        Kind(
            "random forest",
            {},
            [{"n_estimators": 100, "max_depth": depth} for depth in (10, 20)],
            _random_forest,
        ),
        Kind(
            "XGBoost",
            {
                "n_estimators": 100,
                "max_depth": 6,
                "learning_rate": 0.3,
                "subsample": 1,
                "colsample_bytree": 1,
                "min_child_weight": 1,
                "tree_method": "exact",
                "base_score": 0.5,
            },
            [
                {**slow, "max_depth": depth, "min_child_weight": weight, "colsample_bytree": columns}
                for depth in (3, 4, 6)
                for weight in (1, 5)
                for columns in (0.6,)
            ],
            _xgboost,
        ),
    )
