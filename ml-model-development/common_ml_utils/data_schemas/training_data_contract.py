"""What a training set must look like: the feature service's contract and the checks on a labelled frame."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from common_ml_utils.errors import (
    EmptyWindowError,
    ImmatureLabelsError,
    OneClassLabelsError,
    SchemaMismatchError,
)

FieldType = Literal["int64", "float64", "string", "unix_timestamp"]


class _Published(BaseModel):
    """A part of a document another root publishes: keys this root does not use are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class EntitySpec(_Published):
    """An entity and the column that identifies it."""

    name: str
    join_key: str
    type: FieldType


class RequestField(_Published):
    """A value that comes with the request, not from the store."""

    name: str
    type: FieldType


class ViewField(_Published):
    """A column of a feature view."""

    name: str
    type: FieldType


class ViewSpec(_Published):
    """A feature view the service reads; a value older than the TTL counts as missing."""

    name: str
    entity: str
    ttl_seconds: int
    fields: tuple[ViewField, ...] = ()

    @property
    def field_names(self) -> list[str]:
        """Names of the columns."""
        return [field.name for field in self.fields]


class VectorFeature(_Published):
    """One element of the feature vector, and what a missing value becomes."""

    name: str
    source: str
    type: FieldType
    on_missing: Literal["default", "null", "fail"] = "null"
    on_stale: Literal["null", "default", "use_stale", "fail"] | None = None
    default: float | str | None = None

    @model_validator(mode="after")
    def _default_is_given(self) -> VectorFeature:
        if self.on_stale not in (None, self.on_missing):
            # Feast's join gives null for both; the feature store's own training sets tell them apart.
            raise ValueError(f"{self.name}: Feast's join cannot tell a stale value from a missing one")
        if self.on_missing == "default" and self.default is None:
            raise ValueError(f"{self.name}: on_missing is 'default' but no default is given")
        return self

    @property
    def is_categorical(self) -> bool:
        """Strings are categories; every other type is a number."""
        return self.type == "string"


class FeatureServiceContract(_Published):
    """The versioned feature service a model names: entities, request values and the ordered vector."""

    name: str
    version: int
    entities: tuple[EntitySpec, ...]
    request: tuple[RequestField, ...] = ()
    views: tuple[ViewSpec, ...]
    features: tuple[VectorFeature, ...]

    @model_validator(mode="after")
    def _feature_names_are_unique(self) -> FeatureServiceContract:
        if len(set(self.feature_names)) != len(self.features) or not self.features:
            raise ValueError(f"{self.name}: the vector is empty or names a feature twice")
        return self

    @property
    def feature_names(self) -> list[str]:
        """Names of the vector, in order."""
        return [feature.name for feature in self.features]

    @property
    def join_keys(self) -> list[str]:
        """Columns that identify the entities."""
        return [entity.join_key for entity in self.entities]


class PublishedContract(_Published):
    """A feature service contract with the exact text it was published as."""

    text: str
    service: FeatureServiceContract

    @classmethod
    def parse(cls, text: str) -> PublishedContract:
        """Read the contract from its JSON text; raises SchemaMismatchError when it is not one."""
        try:
            return cls(text=text, service=FeatureServiceContract.model_validate(json.loads(text)))
        except (json.JSONDecodeError, ValidationError) as error:
            raise SchemaMismatchError(f"the feature service contract can't be read: {error}") from error

    @property
    def sha256(self) -> str:
        """Hash of the published text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class TrainingDataContract(BaseModel):
    """The shape of a labelled frame: keys, entities, event time, features, label and when it became known.

    Grain: one row an event (`key`). Times are UTC. `validate_frame` is called once, where data enters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: FeatureServiceContract
    key: str
    label: str
    event_timestamp: str = "event_timestamp"
    label_known_at: str = "label_known_at"
    extra_columns: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """All columns, in order; a name that is both a request value and a feature stands once."""
        names = [
            self.key,
            *self.service.join_keys,
            *self.extra_columns,
            self.event_timestamp,
            *self.service.feature_names,
            self.label,
            self.label_known_at,
        ]
        return list(dict.fromkeys(names))

    def validate_frame(self, frame: pd.DataFrame, known_as_of: datetime | None = None) -> pd.DataFrame:
        """Return the frame with the contract's columns, order and types, or raise the DataError that fits.

        With `known_as_of`, a label that became known later is refused.
        """
        _require_columns(frame, self.columns)
        if frame.empty:
            raise EmptyWindowError(
                "the training set has no rows: is the interval loaded, are its labels known?"
            )
        if frame[self.key].duplicated().any():
            raise SchemaMismatchError(
                f"{self.key} is not unique: {frame[self.key].duplicated().sum()} repeats"
            )
        typed = frame[self.columns].copy()
        for feature in self.service.features:
            typed[feature.name] = typed_feature(typed[feature.name], feature)
        for column in (self.event_timestamp, self.label_known_at):
            typed[column] = _utc(typed[column])
        typed[self.label] = _binary(typed[self.label])
        if known_as_of is not None:
            young = int((typed[self.label_known_at] > pd.Timestamp(known_as_of)).sum())
            if young:
                raise ImmatureLabelsError(
                    f"{young} of {len(typed)} labels were not known yet at {known_as_of.isoformat()}"
                )
        return typed.reset_index(drop=True)


def typed_feature(values: pd.Series, feature: VectorFeature) -> pd.Series:
    """Give a feature its type (float64 with NaN, or object with None) and apply `on_missing`.

    Raises SchemaMismatchError for a wrong type, and for a null where the contract says `fail`.
    """
    if feature.is_categorical:
        bad = values.map(lambda value: not (isinstance(value, str) or pd.isna(value)))
        if bad.any():
            raise SchemaMismatchError(f"{feature.name}: {values[bad].iloc[0]} is not a string")
        typed = values.astype(object).where(values.notna(), None)
    else:
        try:
            typed = values.astype("float64")
        except (TypeError, ValueError) as error:
            raise SchemaMismatchError(f"{feature.name}: not numeric: {error}") from error
        if np.isinf(typed.to_numpy()).any():
            raise SchemaMismatchError(f"{feature.name}: holds an infinite value")
    missing = typed.isna()
    if missing.any() and feature.on_missing == "fail":
        raise SchemaMismatchError(f"{feature.name}: {missing.sum()} nulls, and the contract says 'fail'")
    if missing.any() and feature.on_missing == "default":
        typed = typed.where(~missing, feature.default)
    return typed


def require_both_classes(labels: np.ndarray | pd.Series, where: str) -> None:
    """Raise OneClassLabelsError when only one class is present, EmptyWindowError when there is no row."""
    if len(labels) == 0:
        raise EmptyWindowError(f"{where}: there are no rows")
    values = np.unique(np.asarray(labels))
    if len(values) < 2:
        raise OneClassLabelsError(f"{where}: every label is {values.tolist()}, both classes are needed")


def require_values(training: pd.DataFrame, service: FeatureServiceContract) -> None:
    """Raise SchemaMismatchError that names the features without a single value in the training rows.

    Nothing can be learned of such a feature, and its source is most likely broken. One whose missing values
    become a default is refused when it holds nothing but that default.
    """
    empty = []
    for feature in service.features:
        values = training[feature.name]
        filled = values == feature.default if feature.on_missing == "default" else False
        if len(values) and (values.isna() | filled).all():
            empty.append(feature.name)
    if empty:
        raise SchemaMismatchError(
            f"features without a value in any of {len(training)} training rows: {empty}"
        )


def _require_columns(frame: pd.DataFrame, expected: list[str]) -> None:
    missing = [name for name in expected if name not in frame.columns]
    extra = [name for name in frame.columns if name not in expected]
    if missing or extra:
        raise SchemaMismatchError(f"columns differ from the contract: missing {missing}, unexpected {extra}")


def _utc(values: pd.Series) -> pd.Series:
    if not isinstance(values.dtype, pd.DatetimeTZDtype):
        raise SchemaMismatchError(f"{values.name}: times must carry a time zone, found {values.dtype}")
    if values.isna().any():
        raise SchemaMismatchError(f"{values.name}: {values.isna().sum()} nulls")
    return values.dt.tz_convert("UTC").astype("datetime64[us, UTC]")


def _binary(values: pd.Series) -> pd.Series:
    if values.isna().any() or not values.isin([0, 1]).all():
        raise SchemaMismatchError(f"{values.name}: labels must be 0 or 1 and never null")
    return values.astype("int8")
