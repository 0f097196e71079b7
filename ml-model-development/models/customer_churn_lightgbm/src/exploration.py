"""What the notebooks look at: subscribers with their labels, churn by group, and what each feature adds.

Pure but for `labelled_profiles`. Shares carry 95 % Wilson intervals; AUC ROC is of rows a model had not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from common_ml_utils.data_schemas.training_data_contract import FeatureServiceContract, VectorFeature
from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.feature_store_client import FeatureStoreClient
from src.cross_validation import Subject, out_of_fold
from src.data_loader import KEY, LABEL
from src.plots import wilson

PROFILE = "features.fct_subscriber_profile"


def labelled_profiles(client: FeatureStoreClient) -> pd.DataFrame:
    """Return all labelled subscribers with the profile of their label's own moment, straight from the tables.

    For looking only: training joins through Feast, which applies what the contract says of missing values.
    """
    rows = client.query(
        "SELECT p.*, l.churned, l.label_known_at FROM labels.fct_churn_labels l"
        " JOIN features.fct_subscriber_profile p USING (subscriber_id, event_timestamp)"
        " ORDER BY subscriber_id"
    )
    if not rows:
        raise EmptyWindowError(f"{PROFILE} holds no subscriber with a label")
    frame = pd.DataFrame(rows).drop(columns="created_timestamp")
    numbers = [name for name in feature_columns(frame) if frame[name].map(_is_number_or_null).all()]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def feature_columns(frame: pd.DataFrame) -> list[str]:
    """Return the profile's columns: all that start with `subscriber_` but the key."""
    return [name for name in frame.columns if name.startswith("subscriber_") and name != KEY]


def plain_service(frame: pd.DataFrame) -> FeatureServiceContract:
    """Return the vector of a frame as a feature service: numbers as they are, texts as categories."""
    return FeatureServiceContract(
        name="exploration",
        version=1,
        entities=(),
        views=(),
        features=tuple(
            VectorFeature(
                name=name,
                source=PROFILE,
                type="float64" if pd.api.types.is_numeric_dtype(frame[name]) else "string",
            )
            for name in feature_columns(frame)
        ),
    )


def churn_by(frame: pd.DataFrame, groups: pd.Series) -> pd.DataFrame:
    """Return `rows`, `churned` (share) and its interval (`low`, `high`) of each group."""
    table = frame.groupby(groups, observed=True)[LABEL].agg(rows="size", churned="mean")
    low, high = wilson(table["churned"].to_numpy(), table["rows"].to_numpy())
    return table.assign(low=low, high=high)


def bands(values: pd.Series, edges: Sequence[float]) -> pd.Series:
    """Cut numbers into bands closed on the left, named by their edges; the last one is open.

    >>> bands(pd.Series([0.0, 6.0, 99.0]), [0, 6, 24]).tolist()
    ['0-6', '6-24', '24+']
    """
    names = [f"{low:g}-{high:g}" for low, high in pairwise(edges)] + [f"{edges[-1]:g}+"]
    return pd.cut(values, [*edges, np.inf], right=False, labels=names)


def auc_without(subject: Subject, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return for each group of features the AUC ROC of it alone, and what leaving it out costs.

    Folds are the same throughout. `costs` below the noise of the folds, about 0.001, says nothing.
    """
    everything = _auc(subject, subject.service.feature_names)
    rows = {
        name: {
            "alone": _auc(subject, features),
            "costs": everything
            - _auc(subject, [f for f in subject.service.feature_names if f not in features]),
        }
        for name, features in groups.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("costs", ascending=False)


def _auc(subject: Subject, features: Sequence[str]) -> float:
    kept = tuple(feature for feature in subject.service.features if feature.name in features)
    service = subject.service.model_copy(update={"features": kept})
    part = Subject(
        subject.frame, service, subject.label, subject.hyperparameters, subject.values, subject.folds
    )
    scores = out_of_fold(part.frame, part.label, part.folds, part.boosted(part.hyperparameters))
    return float(roc_auc_score(part.labels, scores))


def _is_number_or_null(value: object) -> bool:
    return value is None or isinstance(value, int | float)
