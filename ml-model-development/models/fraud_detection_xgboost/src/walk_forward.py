"""Retrain week after week as production would, and see what lasts: `python -m src.walk_forward`.

```
|<------------- training: 28 days ------------->| 7 days |<- holdout: 7 days ->|     and a week later again
|<------ fit ------>| 7 days |<- validation ->|
```
Thresholds come from each week's validation, as in a training. With `--tune`, parameters are first compared on
weeks whose labels were known before the first measured holdout. From the landing files alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from common_ml_utils.data_schemas.training_data_contract import require_both_classes
from common_ml_utils.errors import EmptyWindowError, ModelDevelopmentError
from common_ml_utils.evaluation_utils import card_precision_at, ordered_thresholds, ranking_and_calibration
from common_ml_utils.reports import StepClock, measurement, write_page, write_report
from src.config import FraudCosts, FraudHyperparameters, FraudWindows
from src.landing import read_landing
from src.train import fit_xgboost, fraud_action_costs
from src.walk_forward_report import Measured, page, terminal_table
from src.windows import platform_features

DELAY_DAYS = 7
WEEK = 7
MEASURED_WEEKS = 9
TUNING_WEEKS = 5
TARGET = 0.70
"""The average precision that the mean of the measured weeks must exceed on the full set."""
CANDIDATES: tuple[dict[str, Any], ...] = (
    {},
    {"min_child_weight": 1},
    {"n_estimators": 400},
    {"max_depth": 6},
    {"max_depth": 6, "min_child_weight": 1, "colsample_bytree": 1},
    {"training_days": 42},
)


@dataclass(frozen=True)
class Payments:
    """All payments with the platform's features; `days` count from the first one."""

    features: np.ndarray
    days: np.ndarray
    customers: np.ndarray
    amounts: np.ndarray
    labels: np.ndarray

    def between(self, first: int, end: int) -> np.ndarray:
        """Return the positions of the days [first, end), which must hold both classes."""
        rows = np.flatnonzero((self.days >= first) & (self.days < end))
        if first < 0 or len(rows) == 0:
            raise EmptyWindowError(f"no payments between day {first} and day {end} of the data")
        require_both_classes(pd.Series(self.labels[rows]), f"days {first} to {end}")
        return rows


@dataclass(frozen=True)
class WeekResult:
    """One holdout week: its measures, thresholds, and the rows with their scores."""

    start: int
    metrics: dict[str, float]
    thresholds: tuple[float, float]
    rows: np.ndarray
    scores: np.ndarray


def holdout_weeks(last_day: int, weeks: int) -> list[int]:
    """Return the first days of the latest holdout weeks, oldest first; labels of the last are just known.

    >>> holdout_weeks(182, 2)
    [162, 169]
    """
    latest = last_day + 1 - DELAY_DAYS - WEEK
    return [latest - WEEK * i for i in reversed(range(weeks))]


def tuning_weeks(measured: Sequence[int], weeks: int) -> list[int]:
    """Return earlier holdout weeks whose labels are all known when the first measured one begins.

    >>> tuning_weeks([113, 120], 2)
    [92, 99]
    """
    latest = measured[0] - DELAY_DAYS - WEEK
    return [latest - WEEK * i for i in reversed(range(weeks))]


def run_week(
    data: Payments, start: int, parameters: FraudHyperparameters, windows: FraudWindows, costs: FraudCosts
) -> WeekResult:
    """Train as of the day `start`, choose thresholds on the validation week, measure the holdout once."""
    training_end = start - DELAY_DAYS
    training_start = training_end - windows.training_days
    validation_start = training_end - windows.validation_days
    fit, validation, training, holdout = (
        data.between(first, end)
        for first, end in (
            (training_start, validation_start - DELAY_DAYS),
            (validation_start, training_end),
            (training_start, training_end),
            (start, start + windows.holdout_days),
        )
    )
    unseen = _fitted_scores(data, fit, validation, parameters)
    thresholds = ordered_thresholds(unseen, action_costs(data, validation, costs))
    scores = _fitted_scores(data, training, holdout, parameters)
    labels = data.labels[holdout]
    cards = card_precision_at(data.days[holdout], data.customers[holdout], labels, scores)
    metrics = {**ranking_and_calibration(labels, scores), "card_precision_100": cards}
    return WeekResult(start, metrics, thresholds, holdout, scores)


def action_costs(data: Payments, rows: np.ndarray, costs: FraudCosts) -> np.ndarray:
    """Return what approving, reviewing and declining each of the rows costs."""
    return fraud_action_costs(data.amounts[rows], data.labels[rows], costs)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the central 95 % of Student's t.

    Neighbouring weeks share three weeks of training, so the interval is rather too narrow than too wide.
    """
    mean, spread = float(np.mean(values)), float(stats.sem(values))
    half = spread * float(stats.t.ppf(0.975, len(values) - 1))
    return mean, mean - half, mean + half


def policy_costs(data: Payments, weeks: Sequence[WeekResult], costs: FraudCosts) -> dict[str, np.ndarray]:
    """Return the cost of each row of all weeks under each policy."""
    parts: dict[str, list[np.ndarray]] = {"approve all": [], "decline at 0.5": [], "cost-aware": []}
    for week in weeks:
        table = action_costs(data, week.rows, costs)
        review, decline = week.thresholds
        action = (week.scores >= review).astype(int) + (week.scores >= decline).astype(int)
        parts["approve all"].append(table[:, 0])
        parts["decline at 0.5"].append(np.where(week.scores >= 0.5, table[:, 2], table[:, 0]))
        parts["cost-aware"].append(table[np.arange(len(table)), action])
    return {name: np.concatenate(values) for name, values in parts.items()}


def saving(
    cards: np.ndarray, without: np.ndarray, with_policy: np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the share of cost saved and the central 95 % when whole cards are drawn with replacement."""
    _, code = np.unique(cards, return_inverse=True)
    before, after = np.bincount(code, without), np.bincount(code, with_policy)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(before), np.full(len(before), 1 / len(before)), size=resamples)
    drawn = 1 - (draws @ after) / (draws @ before)
    lower, upper = np.quantile(drawn, [0.025, 0.975])
    return float(1 - after.sum() / before.sum()), float(lower), float(upper)


def tune(data: Payments, weeks: Sequence[int], costs: FraudCosts) -> list[tuple[str, list[float]]]:
    """Return each candidate with its average precision on each of the tuning weeks."""
    jobs = [(candidate, week) for candidate in CANDIDATES for week in weeks]

    def run(job: tuple[dict[str, Any], int]) -> float:
        candidate, week = job
        changes = {name: value for name, value in candidate.items() if name != "training_days"}
        windows = FraudWindows(training_days=candidate.get("training_days", FraudWindows().training_days))
        result = run_week(data, week, FraudHyperparameters(**changes), windows, costs)
        return result.metrics["average_precision"]

    values = _in_threads(run, jobs, "tuning weeks")
    return [
        (_named(candidate), values[i * len(weeks) : (i + 1) * len(weeks)])
        for i, candidate in enumerate(CANDIDATES)
    ]


def walk_forward(
    data: Payments,
    weeks: Sequence[int],
    parameters: FraudHyperparameters,
    windows: FraudWindows,
    costs: FraudCosts,
) -> list[WeekResult]:
    """Run every week."""
    return _in_threads(lambda week: run_week(data, week, parameters, windows, costs), weeks, "holdout weeks")


def measure(data: Payments, weeks: list[WeekResult], costs: FraudCosts, **content: Any) -> Measured:
    """Sum the weeks up: means with intervals, costs of the policies, savings, and the cost curves."""
    paid = policy_costs(data, weeks, costs)
    rows = np.concatenate([week.rows for week in weeks])
    cards = data.customers[rows]
    return Measured(
        weeks=[(week.start, week.metrics, week.thresholds) for week in weeks],
        means={name: mean_and_interval([week.metrics[name] for week in weeks]) for name in weeks[0].metrics},
        cost_per_thousand={name: float(values.mean() * 1000) for name, values in paid.items()},
        savings={
            name: saving(cards, paid[name], paid["cost-aware"]) for name in ("approve all", "decline at 0.5")
        },
        scores=np.concatenate([week.scores for week in weeks]),
        action_costs=action_costs(data, rows, costs),
        costs=costs,
        median_amount=float(np.median(data.amounts[rows])),
        **content,
    )


def read_payments(folder: Path) -> tuple[str, Payments]:
    """Return the data set's id and its payments with the platform's features."""
    landing = read_landing(folder)
    raw = landing.transactions
    return landing.dataset_id, Payments(
        platform_features(raw).to_numpy(),
        raw["day"].to_numpy(),
        raw["customer_id"].to_numpy(),
        raw["tx_amount"].to_numpy(),
        raw["is_fraud"].to_numpy().astype(int),
    )


def _fitted_scores(
    data: Payments, training: np.ndarray, rows: np.ndarray, parameters: FraudHyperparameters
) -> np.ndarray:
    model = fit_xgboost(data.features[training], data.labels[training], parameters)
    return model.scores(data.features[rows])


def _in_threads(work: Any, jobs: Sequence[Any], name: str) -> list[Any]:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(tqdm(pool.map(work, jobs), desc=name, total=len(jobs), unit="run"))


def _named(candidate: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in candidate.items()) or "as configured"


def run(landing: Path, reports: Path, tuning: bool) -> Measured:
    """Do all of it and write `walk_forward.json` and `walk_forward.html`."""
    clock = StepClock()
    parameters, windows, costs = FraudHyperparameters(), FraudWindows(), FraudCosts()
    with clock.step("read"):
        dataset_id, data = read_payments(landing)
    weeks = holdout_weeks(int(data.days.max()), MEASURED_WEEKS)
    tried: list[tuple[str, list[float]]] = []
    if tuning:
        with clock.step("tune"):
            tried = tune(data, tuning_weeks(weeks, TUNING_WEEKS), costs)
    with clock.step("walk forward"):
        results = walk_forward(data, weeks, parameters, windows, costs)
    with clock.step("sum up"):
        measured = measure(data, results, costs, tried=tried, dataset_id=dataset_id)
    lines = [
        measurement(
            f"{name}, mean of {len(weeks)} weeks",
            mean,
            "ratio",
            target=TARGET if name == "average_precision" else None,
        )
        for name, (mean, _, _) in measured.means.items()
    ]
    lines += [
        measurement(f"saved beside: {name}", share[0], "ratio") for name, share in measured.savings.items()
    ]
    write_report(
        reports / "walk_forward.json",
        lines,
        dataset_id=dataset_id,
        weeks=[
            {"first_day": start, "thresholds": cuts, **metrics} for start, metrics, cuts in measured.weeks
        ],
        intervals=measured.means,
        savings=measured.savings,
        cost_per_thousand=measured.cost_per_thousand,
        tried=[{"candidate": name, "average_precision": values} for name, values in tried],
        seconds=clock.seconds,
    )
    write_page(reports / "walk_forward.html", page(measured, datetime.now(UTC).date().isoformat()))
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; it reads no setting but the folders' defaults."""
    data, reports = os.environ.get("DATA_DIR"), os.environ.get("REPORTS_DIR")
    parser = argparse.ArgumentParser(prog="python -m src.walk_forward", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--landing",
        type=Path,
        default=Path(data) / "landing" / "transactions" if data else None,
        required=data is None,
        help="folder of simulated transactions; default: DATA_DIR/landing/transactions",
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=Path(reports) / "fraud" if reports else None,
        required=reports is None,
        help="folder to write to; default: REPORTS_DIR/fraud",
    )
    parser.add_argument("--tune", action="store_true", help="first compare parameters on earlier weeks")
    options = parser.parse_args(arguments)
    try:
        measured = run(options.landing, options.reports, options.tune)
    except ModelDevelopmentError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(terminal_table(measured))
    print(f"\n{options.reports / 'walk_forward.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
