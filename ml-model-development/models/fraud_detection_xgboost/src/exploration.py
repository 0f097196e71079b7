"""What the notebooks look at: totals by day and hour, labelled rows of the latest days, single features."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from common_ml_utils.data_schemas.training_data_contract import require_both_classes
from common_ml_utils.feature_store_client import FeatureStoreClient
from src.config import FEATURE_SERVICE, LABEL_NAME
from src.data_loader import LABEL, Interval, load_labelled
from src.preprocessor import check_ranges


def payments_a_day(client: FeatureStoreClient) -> pd.DataFrame:
    """Return payments, frauds and their amounts by day (UTC), for all labelled days."""
    rows = client.query(
        "SELECT tx_date, count(*) AS payments, sum(is_fraud) AS frauds, sum(tx_amount) AS amount,"
        " sum(tx_amount * is_fraud) AS fraud_amount FROM labels.fct_fraud_labels GROUP BY 1 ORDER BY 1"
    )
    return pd.DataFrame(rows).astype({"frauds": int, "amount": float, "fraud_amount": float})


def payments_an_hour(client: FeatureStoreClient) -> pd.DataFrame:
    """Return payments and the share of frauds by hour of the day (UTC), over all labelled days."""
    rows = client.query(
        "SELECT extract(hour FROM event_timestamp AT TIME ZONE 'UTC')::int AS hour, count(*) AS payments,"
        " avg(is_fraud)::float8 AS fraud_rate FROM labels.fct_fraud_labels GROUP BY 1 ORDER BY 1"
    )
    return pd.DataFrame(rows)


def latest_labelled(client: FeatureStoreClient, days: int) -> pd.DataFrame:
    """Return the latest `days` days whose labels are known, with the features of the service, checked."""
    delay = timedelta(days=client.label_policy(LABEL_NAME).delay_days)
    last_day = client.loaded_days()[1]
    known = datetime.combine(last_day + timedelta(days=1), time(), UTC)
    interval = Interval(known - delay - timedelta(days=days), known - delay)
    return check_ranges(load_labelled(client, client.contract(FEATURE_SERVICE), [interval], known))


def fraud_rate_by_band(frame: pd.DataFrame, feature: str, bands: int = 10) -> pd.DataFrame:
    """Return rows and fraud rate of bands of a feature that hold about as many rows each."""
    band = pd.qcut(frame[feature], bands, duplicates="drop")
    return frame.groupby(band, observed=True)[LABEL].agg(rows="size", fraud_rate="mean")


def separation(frame: pd.DataFrame, features: list[str]) -> pd.DataFrame:
    """Return, for each feature alone: AUC ROC either way round, share of nulls and number of values.

    0.5 says nothing about frauds. Sorted from the strongest. Raises OneClassLabelsError.
    """
    require_both_classes(frame[LABEL], "exploration")
    labels = frame[LABEL].to_numpy()
    rows = []
    for name in features:
        values = frame[name].to_numpy(dtype=float)
        present = ~np.isnan(values)
        auc = float(roc_auc_score(labels[present], values[present]))
        rows.append((name, max(auc, 1 - auc), 1 - present.mean(), len(np.unique(values[present]))))
    table = pd.DataFrame(rows, columns=["feature", "auc_roc", "nulls", "values"]).set_index("feature")
    return table.sort_values("auc_roc", ascending=False)


def redundancy(frame: pd.DataFrame, features: list[str]) -> pd.DataFrame:
    """Return the rank correlation of each pair of features (Spearman)."""
    return frame[features].corr(method="spearman")
