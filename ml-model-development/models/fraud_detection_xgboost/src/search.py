"""Search for the fraud model's hyperparameters: `python -m src.search [--trials N] [--timeout S]`.

```
|<- training_days ->| delay |<- validation ->|                        fold 1
         |<- training_days ->| delay |<- validation ->|               fold 2, one validation interval later
                                                      | delay |<- holdout ->| delay | as_of
```
Nothing from the holdout on is fetched: neither its rows nor a label that was not known when it began.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from common_ml_utils.data_schemas.training_data_contract import require_both_classes
from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.hyperparameter_search import (
    SearchFold,
    SearchProblem,
    Watch,
    search_command,
    xgboost_watch,
)
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.training_backends import TrainingBackend
from common_ml_utils.training_sets import data_version
from src.config import (
    FEATURE_SERVICE,
    IDENTITY,
    LABEL_NAME,
    FraudHyperparameters,
    FraudTrainingSettings,
    FraudWindows,
)
from src.data_loader import LABEL, FraudIntervals, Interval, load_labelled, resolve_intervals
from src.preprocessor import check_ranges
from src.train import fit_xgboost

SPACE = Path(__file__).with_name("search_space.yaml")


def prequential_folds(
    intervals: FraudIntervals, first_day: date, delay_days: int, windows: FraudWindows, folds: int
) -> list[tuple[Interval, Interval]]:
    """Return (fit, validation) intervals, the earliest first; all end where training ends, or earlier.

    Raises EmptyWindowError when no whole day is left to fit the first fold on.
    """
    loaded_from = datetime.combine(first_day, time(), UTC)
    delay, length = timedelta(days=delay_days), timedelta(days=windows.validation_days)
    pairs = []
    for back in range(folds, 0, -1):
        end = intervals.training.end - (back - 1) * length
        validation = Interval(end - length, end)
        fit_end = validation.start - delay
        fit_start = max(loaded_from, fit_end - timedelta(days=windows.training_days))
        if fit_start >= fit_end:
            raise EmptyWindowError(
                f"too few days for {folds} folds: data begins on {first_day}, and the first one would fit on "
                f"days before {fit_end:%Y-%m-%d}; set TRAINING_SEARCH__FOLDS lower"
            )
        pairs.append((Interval(fit_start, fit_end), validation))
    return pairs


def load_problem(
    settings: FraudTrainingSettings, as_of: datetime | None, client: FeatureStoreClient | None = None
) -> SearchProblem:
    """Fetch the days before the holdout and cut them into prequential folds."""
    from common_ml_utils.search.space import load_space

    space = load_space(SPACE, settings.hyperparameters)
    client = client or FeatureStoreClient(settings.feature_store_db)
    contract = client.contract(FEATURE_SERVICE)
    delay_days = client.label_policy(LABEL_NAME).delay_days
    first_day, last_day = client.loaded_days()
    end = as_of or datetime.combine(last_day + timedelta(days=1), time(), UTC)
    intervals = resolve_intervals(end, first_day, delay_days, settings.windows)
    pairs = prequential_folds(intervals, first_day, delay_days, settings.windows, settings.search.folds)
    wanted = Interval(pairs[0][0].start, pairs[-1][1].end)
    rows = check_ranges(load_labelled(client, contract, [wanted], intervals.holdout.start))

    def fold(fit: Interval, validation: Interval) -> SearchFold:
        fit_rows, validation_rows = fit.rows(rows), validation.rows(rows)
        name = f"{validation.start:%Y-%m-%d}/{validation.end:%Y-%m-%d}"
        for part, where in ((fit_rows, "rows before fold"), (validation_rows, "fold")):
            if part.empty:
                raise EmptyWindowError(f"{where} {name}: no labelled transactions")
            require_both_classes(part[LABEL], f"{where} {name}")
        return fold_of(name, Preprocessing.fit(contract.service, fit_rows), fit_rows, validation_rows)

    return SearchProblem(
        report=IDENTITY.report,
        experiment=IDENTITY.experiment,
        space=space,
        folds=[fold(fit, validation) for fit, validation in pairs],
        metric=settings.search.metric,
        data_version=data_version(client.dataset_id(), contract.sha256, rows),
    )


def fold_of(
    name: str, preprocessing: Preprocessing, fit_rows: pd.DataFrame, validation_rows: pd.DataFrame
) -> SearchFold:
    """Return a fold whose matrices are made once for all trials."""
    matrix, labels = preprocessing.transform(fit_rows), fit_rows[LABEL].to_numpy()
    unseen = preprocessing.transform(validation_rows)

    def scores(parameters: FraudHyperparameters, watch: Watch) -> np.ndarray:
        backend = TrainingBackend([xgboost_watch(unseen, parameters.n_estimators, watch)])
        return fit_xgboost(matrix, labels, parameters, backend).scores(unseen)

    return SearchFold(name, validation_rows[LABEL].to_numpy(), scores)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    return search_command(FraudTrainingSettings, load_problem, arguments)


if __name__ == "__main__":
    sys.exit(main())
