"""Preprocessing as data: the feature order and category maps that travel inside the release bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, model_validator

from common_ml_utils.data_schemas.training_data_contract import FeatureServiceContract
from common_ml_utils.errors import SchemaMismatchError

FeatureValue = float | int | str | None


class PreprocessedFeature(BaseModel):
    """One column of the model's matrix: a number as it is, or a category as its index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["numeric", "categorical"]
    categories: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _categories_fit_the_kind(self) -> PreprocessedFeature:
        if (self.kind == "categorical") != (self.categories is not None):
            raise ValueError(f"{self.name}: categories belong to categorical features, and only to them")
        return self


class Preprocessing(BaseModel):
    """Turns feature vectors into the model's float64 matrix: unknown categories and nulls become NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    features: tuple[PreprocessedFeature, ...]

    @classmethod
    def fit(cls, service: FeatureServiceContract, training: pd.DataFrame) -> Preprocessing:
        """Take order and kinds from the contract and the categories, sorted, from the training rows."""
        features = []
        for feature in service.features:
            if feature.is_categorical:
                seen = tuple(sorted(training[feature.name].dropna().unique()))
                features.append(PreprocessedFeature(name=feature.name, kind="categorical", categories=seen))
            else:
                features.append(PreprocessedFeature(name=feature.name, kind="numeric"))
        return cls(features=tuple(features))

    @property
    def names(self) -> list[str]:
        """Feature names in matrix order."""
        return [feature.name for feature in self.features]

    @property
    def categorical_indexes(self) -> list[int]:
        """Positions of the categorical columns."""
        return [i for i, feature in enumerate(self.features) if feature.kind == "categorical"]

    def transform(self, frame: pd.DataFrame) -> np.ndarray:
        """Return the matrix, one row a frame row; columns that are not features are left aside.

        Raises SchemaMismatchError when a feature is missing or a numeric one holds text.
        """
        missing = [name for name in self.names if name not in frame.columns]
        if missing:
            raise SchemaMismatchError(f"features are missing: {missing}")
        matrix = np.empty((len(frame), len(self.features)), dtype=np.float64)
        for i, feature in enumerate(self.features):
            column = frame[feature.name]
            if feature.categories is not None:
                index = {category: float(code) for code, category in enumerate(feature.categories)}
                matrix[:, i] = column.map(index).to_numpy(dtype=np.float64)
                continue
            try:
                matrix[:, i] = column.to_numpy(dtype=np.float64, na_value=np.nan)
            except (TypeError, ValueError) as error:
                raise SchemaMismatchError(f"{feature.name}: not numeric: {error}") from error
        return matrix

    def transform_row(self, row: Mapping[str, FeatureValue]) -> np.ndarray:
        """Return the matrix of one vector, shape (1, features), without a data frame."""
        matrix = np.empty((1, len(self.features)), dtype=np.float64)
        for i, feature in enumerate(self.features):
            try:
                value = row[feature.name]
            except KeyError as error:
                raise SchemaMismatchError(f"features are missing: [{feature.name!r}]") from error
            if feature.categories is not None:
                matrix[0, i] = _code(feature.categories, value)
            elif value is None:
                matrix[0, i] = np.nan
            elif isinstance(value, str):
                raise SchemaMismatchError(f"{feature.name}: not numeric: {value!r}")
            else:
                matrix[0, i] = value
        return matrix


def _code(categories: tuple[str, ...], value: FeatureValue) -> float:
    return float(categories.index(value)) if value in categories else float("nan")
