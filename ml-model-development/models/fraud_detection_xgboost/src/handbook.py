"""The Fraud Detection Handbook's single split with the platform's features, beside its published figures."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime, time, timedelta

import numpy as np
import pandas as pd

from common_ml_utils.errors import DataError
from common_ml_utils.evaluation_utils import (
    card_precision_at,
    drop_known_compromised,
    ranking_and_calibration,
)
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.reports import StepClock, measurement, write_html, write_report
from src.config import FEATURE_SERVICE, IDENTITY, LABEL_NAME, FraudTrainingSettings
from src.data_loader import LABEL, Interval, load_labelled
from src.preprocessor import check_ranges, days_since_epoch
from src.train import fit_xgboost

# The Handbook's single split: days since the first simulated one, and what its authors report on it.
HANDBOOK_TRAINING = (115, 122)
HANDBOOK_TEST = (129, 136)
FULL_SET = {"transactions": 1_754_155, "frauds": 14_681}
HANDBOOK_ROWS = {"training": (67_240, 598), "test": (58_264, 385)}
PUBLISHED = {
    "logistic regression": {"auc_roc": 0.871, "average_precision": 0.606, "card_precision_100": 0.291},
    "decision tree, depth 2": {"auc_roc": 0.763, "average_precision": 0.496, "card_precision_100": 0.241},
    "random forest": {"auc_roc": 0.867, "average_precision": 0.658, "card_precision_100": 0.287},
    "XGBoost": {"auc_roc": 0.862, "average_precision": 0.639, "card_precision_100": 0.273},
}
TARGETS = {"auc_roc": 0.86, "average_precision": 0.60}


def single_split(settings: FraudTrainingSettings) -> None:
    """Train and measure on the Fraud Detection Handbook's single split, beside its published figures."""
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
    if full and rows != HANDBOOK_ROWS:
        raise DataError(
            f"the full set must give {HANDBOOK_ROWS} rows and frauds, not {rows}: is a day wrong?"
        )
    _report_handbook(settings, metrics, rows, full, clock)
    measured = ", ".join(f"{name} {metrics[name]:.4f}" for name in PUBLISHED["XGBoost"])
    print(f"Handbook split, {'full' if full else 'scaled-down'} set: {measured}")


def load_handbook_split(client: FeatureStoreClient) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the Handbook's training and test rows; cards known to be compromised are out of the test."""
    first, last = client.loaded_days()
    if (last - first).days + 1 < HANDBOOK_TEST[1]:
        raise DataError(f"the Handbook's split needs {HANDBOOK_TEST[1]} days, {first} to {last} are loaded")
    policy = client.label_policy(LABEL_NAME)
    intervals = [
        Interval(_day(first, start), _day(first, end)) for start, end in (HANDBOOK_TRAINING, HANDBOOK_TEST)
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
    return {name: int(value or 0) for name, value in counted.items()} == FULL_SET


def comparison_plot(metrics: dict[str, float]) -> bytes:
    """Draw this model's figures beside the published ones as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = {"this model": metrics, **PUBLISHED}
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(PUBLISHED["XGBoost"])
    for i, (model, values) in enumerate(models.items()):
        heights = [values[name] for name in names]
        bars = axes.bar(np.arange(len(names)) + i * 0.16, heights, width=0.15, label=model)
        axes.bar_label(bars, fmt="%.3f", fontsize=7)
    axes.set_xticks(np.arange(len(names)) + 0.32, names)
    axes.set(ylim=(0, 1), title="The Handbook's single split")
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _report_handbook(
    settings: FraudTrainingSettings,
    metrics: dict[str, float],
    rows: dict[str, tuple[int, int]],
    full: bool,
    clock: StepClock,
) -> None:
    """Write `handbook.json`, `.png` and `.html`; targets and published figures hold for the full set only."""
    folder = settings.reports_dir / IDENTITY.report
    published = PUBLISHED["XGBoost"] if full else {}
    peer = "Fraud Detection Handbook, XGBoost"
    results = [
        measurement(
            name,
            value,
            "ratio",
            target=TARGETS.get(name) if full else None,
            peer=peer if name in published else "",
            peer_value=published.get(name),
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
        published=PUBLISHED,
        rows=counts,
        parameters=settings.hyperparameters.model_dump(),
        seconds=clock.seconds,
    )
    plot = comparison_plot(metrics)
    (folder / "handbook.png").write_bytes(plot)
    tables = {
        "This model": metrics,
        **{f"{name}: transactions and frauds": counted for name, counted in counts.items()},
        **{f"Published: {name}": figures for name, figures in PUBLISHED.items()},
    }
    write_html(folder / "handbook.html", "The Handbook's single split", tables, {"comparison": plot})


def _day(first: date, number: int) -> datetime:
    return datetime.combine(first + timedelta(days=number), time(), UTC)
