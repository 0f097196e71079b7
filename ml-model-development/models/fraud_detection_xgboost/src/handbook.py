"""Our models beside the Fraud Detection Handbook's published figures: `python -m src.handbook`.

From the landing files alone, no stack needed: single split and prequential folds, on the published features
and on the platform's. `single_split` is the pipelines' quick check: one model, features from the store.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pandas as pd
from sklearn.metrics import precision_recall_curve

from common_ml_utils.errors import DataError, ModelDevelopmentError
from common_ml_utils.evaluation_utils import (
    card_precision_at,
    drop_known_compromised,
    ranking_and_calibration,
)
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.pages import Facts, Page, Section
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.reports import StepClock, measurement, write_page, write_report
from src import handbook_protocol as protocol
from src import handbook_report as report
from src.config import FEATURE_SERVICE, IDENTITY, LABEL_NAME, FraudTrainingSettings
from src.data_loader import LABEL, Interval, load_labelled
from src.handbook_protocol import SINGLE_SPLIT, Labelled
from src.handbook_report import Measured, published
from src.landing import Landing, read_landing
from src.preprocessor import check_ranges, days_since_epoch
from src.train import fit_xgboost
from src.windows import platform_features, published_features

TARGETS = {"auc_roc": 0.86, "average_precision": 0.60}
"""What the quick check must reach with features from the store, on the full set."""


# --- all protocols, from the landing files ----------------------------------------------------------------


def reproduce(landing: Path, reports: Path) -> Measured:
    """Run both protocols on both definitions of features; write `handbook.json` and `handbook.html`.

    Raises DataError when the full set does not give the published rows, or the set ends too early.
    """
    clock = StepClock()
    with clock.step("read"):
        data = read_landing(landing)
    with clock.step("features"):
        datasets = _datasets(data)
    rows = _split_rows(datasets)
    totals = {"transactions": len(data.transactions), "frauds": int(data.transactions["is_fraud"].sum())}
    full = totals == published()["full set"]
    if full:
        _check_rows(rows)
    measured = Measured(full=full, rows=rows, dataset_id=data.dataset_id, seconds=clock.seconds)
    kinds = protocol.kinds()
    for name, dataset in datasets.items():
        with clock.step(f"single split, {name}"):
            scored = protocol.single_split(dataset, kinds)
        measured.single[name] = {kind: dataset.measures(*both) for kind, both in scored.items()}
        measured.curves[name] = {}
        for kind, (test, scores) in scored.items():
            precision, recall, _ = precision_recall_curve(dataset.labels[test], scores)
            measured.curves[name][kind] = (recall, precision)
        with clock.step(f"prequential, {name}"):
            measured.tuned[name] = protocol.prequential(dataset, kinds, name)
    _write(measured, totals, reports)
    return measured


def _datasets(landing: Landing) -> dict[str, Labelled]:
    """Return the data under both definitions of features."""
    raw = landing.transactions
    days, customers = raw["day"].to_numpy(), raw["customer_id"].to_numpy()
    labels = raw["is_fraud"].to_numpy().astype(int)
    definitions = {"published features": published_features, "platform features": platform_features}
    return {
        name: Labelled(features_of(raw).to_numpy(), days, customers, labels)
        for name, features_of in definitions.items()
    }


def _split_rows(datasets: dict[str, Labelled]) -> dict[str, tuple[int, int]]:
    dataset = next(iter(datasets.values()))
    training, test = dataset.rows(SINGLE_SPLIT)
    return {
        name: (len(rows), int(dataset.labels[rows].sum()))
        for name, rows in (("training", training), ("test", test))
    }


def _check_rows(rows: dict[str, tuple[int, int]]) -> None:
    expected = {name: tuple(counts) for name, counts in published()["single split rows"].items()}
    if rows != expected:
        raise DataError(f"the full set must give {expected} rows and frauds, not {rows}: is a day wrong?")


def _write(measured: Measured, totals: dict[str, int], reports: Path) -> None:
    tuned = {
        definition: {
            kind: {
                "chosen": result.chosen,
                "test_weeks": result.folds,
                "tuning": [{"parameters": given, **values} for given, values in result.tuning],
            }
            for kind, result in kinds.items()
        }
        for definition, kinds in measured.tuned.items()
    }
    write_report(
        reports / "handbook.json",
        report.result_lines(measured),
        full_set=measured.full,
        dataset_id=measured.dataset_id,
        rows={**totals, **measured.rows},
        published=published()["published"],
        prequential=tuned,
        seconds=measured.seconds,
    )
    today = datetime.now(UTC).date().isoformat()
    write_page(reports / "handbook.html", report.page(measured, today))


# --- the pipelines' quick check, from the feature store ---------------------------------------------------


def single_split(settings: FraudTrainingSettings) -> None:
    """Train and measure on the Handbook's single split with features from the store."""
    clock = StepClock()
    client = FeatureStoreClient(settings.feature_store_db)
    with clock.step("load"):
        training, test = load_handbook_split(client)
    with clock.step("fit"):
        preprocessing = Preprocessing.fit(client.contract(FEATURE_SERVICE).service, training)
        labels = training[LABEL].to_numpy()
        model = fit_xgboost(preprocessing.transform(training), labels, settings.hyperparameters)
    with clock.step("evaluate"):
        scores = model.scores(preprocessing.transform(test))
        truth, cards = test[LABEL].to_numpy(), test["customer_id"].to_numpy()
        metrics = ranking_and_calibration(truth, scores)
        metrics["card_precision_100"] = card_precision_at(days_since_epoch(test), cards, truth, scores)
    full = is_full_set(client)
    rows = {"training": (len(training), int(labels.sum())), "test": (len(test), int(truth.sum()))}
    if full:
        _check_rows(rows)
    _report_split(settings, metrics, rows, full, clock)
    measured = ", ".join(f"{name} {metrics[name]:.4f}" for name in protocol.MEASURES)
    print(f"Handbook split, {'full' if full else 'scaled-down'} set: {measured}")


def load_handbook_split(client: FeatureStoreClient) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the Handbook's training and test rows; cards known to be compromised are out of the test."""
    first, last = client.loaded_days()
    days = SINGLE_SPLIT.test[1]
    if (last - first).days + 1 < days:
        raise DataError(f"the Handbook's split needs {days} days, {first} to {last} are loaded")
    policy = client.label_policy(LABEL_NAME)
    intervals = [
        Interval(_day(first, start), _day(first, end))
        for start, end in (SINGLE_SPLIT.training, SINGLE_SPLIT.test)
    ]
    known_as_of = intervals[1].end + timedelta(days=policy.delay_days)
    contract = client.contract(FEATURE_SERVICE)
    labelled = check_ranges(load_labelled(client, contract, intervals, known_as_of))
    training, test = (interval.rows(labelled) for interval in intervals)
    frauds = pd.DataFrame(
        client.query(
            "SELECT DISTINCT customer_id, tx_date - DATE '1970-01-01' AS day FROM labels.fct_fraud_labels"
            " WHERE is_fraud = 1 AND event_timestamp >= %s AND event_timestamp < %s",
            [intervals[0].start, intervals[1].end],
        ),
        columns=["customer_id", "day"],
    )
    test = test.assign(day=days_since_epoch(test))
    return training, drop_known_compromised(test, frauds, policy.delay_days).drop(columns="day")


def is_full_set(client: FeatureStoreClient) -> bool:
    """Tell whether the loaded transactions are the Handbook's whole set, by its published totals."""
    counted = client.query(
        "SELECT count(*) AS transactions, sum(is_fraud) AS frauds FROM raw.transaction_labels"
    )[0]
    return {name: int(value or 0) for name, value in counted.items()} == published()["full set"]


def _report_split(
    settings: FraudTrainingSettings,
    metrics: dict[str, float],
    rows: dict[str, tuple[int, int]],
    full: bool,
    clock: StepClock,
) -> None:
    """Write the quick check's `handbook.json` and `.html`; targets and peers hold for the full set only."""
    folder = settings.reports_dir / IDENTITY.report
    everyones = published()["published"][report.SINGLE]
    theirs = everyones["XGBoost"] if full else {}
    results = [
        measurement(
            name,
            value,
            "ratio",
            target=TARGETS.get(name) if full else None,
            peer="Fraud Detection Handbook, XGBoost" if name in theirs else "",
            peer_value=theirs.get(name),
        )
        for name, value in metrics.items()
    ]
    counts = {
        name: {"transactions": transactions, "frauds": frauds}
        for name, (transactions, frauds) in rows.items()
    }
    write_report(
        folder / "handbook.json",
        results,
        full_set=full,
        metrics=metrics,
        published=everyones,
        rows=counts,
        parameters=settings.hyperparameters.model_dump(),
        seconds=clock.seconds,
    )
    sections = {
        "This model": metrics,
        **{f"{name}: transactions and frauds": counted for name, counted in counts.items()},
        **{f"Published: {name}": figures for name, figures in everyones.items()},
    }
    title = "The Handbook's single split"
    write_page(
        folder / "handbook.html",
        Page(title, "", [], [Section(name, [Facts(values)]) for name, values in sections.items()]),
    )


def _day(first: date, number: int) -> datetime:
    return datetime.combine(first + timedelta(days=number), time(), UTC)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; it reads no setting but the folders' defaults."""
    data, reports = os.environ.get("DATA_DIR"), os.environ.get("REPORTS_DIR")
    parser = argparse.ArgumentParser(prog="python -m src.handbook", description=__doc__)
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
        default=Path(reports) if reports else None,
        required=reports is None,
        help="folder to write to; default: REPORTS_DIR",
    )
    options = parser.parse_args(arguments)
    try:
        measured = reproduce(options.landing, options.reports)
    except ModelDevelopmentError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for name in (report.SINGLE, report.PREQUENTIAL):
        print(f"\n{report.terminal_table(measured, name)}")
    if not measured.full:
        print("\nA scaled-down set: the published figures are not comparable.")
    print(f"\n{options.reports / 'handbook.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
