"""A labelled CSV file and the schema that says what is in it: what is wrong is named, by file and row.

The schema is YAML (`CsvSchema`); the file is CSV with a header, plain or gzipped. Rows are counted as a
spreadsheet does: the header is row 1.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import zlib
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import (
    EmptyWindowError,
    OneClassLabelsError,
    SchemaMismatchError,
    first_line,
)
from common_ml_utils.release_bundle import ReasonCode
from src.config import ChurnFolds, ChurnHyperparameters, ChurnValues
from src.data_loader import LABEL

NAME = "^[a-z][a-z0-9_]*$"
SHOWN = 3
"""Bad rows that an error names."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("positive", "negative", "missing", mode="before", check_fields=False)
    @classmethod
    def _no_booleans(cls, value: Any) -> Any:
        """Refuse `yes` without quotes, which YAML reads as true, and take numbers as their text."""
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) for one in values):
            raise ValueError('put it in quotes: YAML reads yes, no, on and off as true and false ("yes")')
        texts = [str(one) if isinstance(one, int | float) else one for one in values]
        return texts if isinstance(value, list) else texts[0]


class KeyColumn(_Part):
    """The column that identifies a row."""

    column: str
    type: Literal["int64", "string"] = "int64"


class LabelColumn(_Part):
    """The column that says who left, and its only two values."""

    column: str
    positive: str
    negative: str

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        if self.positive == self.negative:
            raise ValueError("positive and negative are the same value")
        return self


class FeatureColumn(_Part):
    """A column the model learns from; `missing` is further texts that stand for no value."""

    column: str
    type: Literal["numeric", "categorical"]
    name: str = Field(default="", pattern="^([a-z][a-z0-9_]*)?$")
    """The feature's name; without one, the column's in snake case."""
    missing: tuple[str, ...] = ()
    reason: ReasonCode | None = None
    """What the feature says when it raises the score."""

    @property
    def feature(self) -> str:
        """The feature's name.

        >>> FeatureColumn(column="Total charges ($)", type="numeric").feature
        'total_charges'
        """
        return self.name or snake_case(self.column)

    @property
    def reason_code(self) -> ReasonCode:
        """The reason given, else one made of the column's name."""
        text = f"The value of {self.column} is one that goes with leaving"
        return self.reason or ReasonCode(code=self.feature.upper(), text=text)


class CardWords(_Part):
    """What the model card says beside its figures."""

    owner: str = "not stated"
    purpose: str = "Gives the probability that a customer leaves."
    data: str = "A CSV file; the schema says no more."
    limits: tuple[str, ...] = ("Trained from a file: there is no feature store behind it, and no gate.",)


class CsvSchema(_Part):
    """Everything a training needs to know about a CSV file; see docs/churn.md."""

    name: str = Field(pattern=NAME)
    version: int = Field(default=1, ge=1)
    entity: str = Field(default="customer", pattern=NAME)
    encoding: str = "utf-8"
    separator: str = Field(default=",", min_length=1, max_length=1)
    key: KeyColumn
    label: LabelColumn
    features: tuple[FeatureColumn, ...] = Field(min_length=1)
    ignore: tuple[str, ...] = ()
    """Columns of the file that are left aside."""
    missing: tuple[str, ...] = ("",)
    """Texts that stand for no value, in any feature."""
    snapshot_date: date | None = None
    """The day the rows describe (UTC); without one, the day of the training."""
    label_delay_days: int = Field(default=30, ge=0)
    slices: tuple[str, ...] = ()
    """Categorical features whose values are groups to measure apart."""
    hyperparameters: ChurnHyperparameters = ChurnHyperparameters()
    validation: ChurnFolds = ChurnFolds()
    values: ChurnValues = ChurnValues()
    card: CardWords = CardWords()

    @model_validator(mode="after")
    def _columns_stand_once(self) -> Self:
        columns = [self.key.column, self.label.column, *(f.column for f in self.features), *self.ignore]
        _once(columns, "columns")
        _once([f.feature for f in self.features], "feature names")
        reserved = {LABEL, "event_timestamp", "label_known_at", self.key_name}
        if taken := sorted(reserved & {f.feature for f in self.features}):
            raise ValueError(f"feature names that the trainer uses itself: {taken}; give another `name`")
        kinds = {f.feature: f.type for f in self.features}
        if wrong := [name for name in self.slices if kinds.get(name) != "categorical"]:
            raise ValueError(f"slices must be categorical features: {wrong}")
        return self

    @property
    def key_name(self) -> str:
        """The name of the key in the training set."""
        return snake_case(self.key.column)

    @property
    def columns(self) -> list[str]:
        """All columns the file must have, in the schema's order."""
        return [self.key.column, *(f.column for f in self.features), self.label.column, *self.ignore]

    @property
    def snapshot(self) -> datetime:
        """The moment the rows describe."""
        return datetime.combine(self.snapshot_date or datetime.now(UTC).date(), time(), UTC)

    def contract(self) -> PublishedContract:
        """Return the schema as a feature service's contract: what the bundle carries."""
        kinds = {"numeric": "float64", "categorical": "string"}
        fields = [{"name": f.feature, "type": kinds[f.type]} for f in self.features]
        document = {
            "name": f"{self.name}_v{self.version}",
            "version": self.version,
            "entities": [{"name": self.entity, "join_key": self.key_name, "type": self.key.type}],
            "request": [],
            "views": [{"name": self.name, "entity": self.entity, "ttl_seconds": 0, "fields": fields}],
            "on_demand": None,
            "features": [{**field, "source": self.name, "on_missing": "null"} for field in fields],
        }
        return PublishedContract.parse(json.dumps(document, indent=1, sort_keys=True))


def snake_case(text: str) -> str:
    """Return a name of lower-case letters, digits and underscores.

    >>> snake_case("totalDayMinutes"), snake_case(" Intl. Plan ")
    ('total_day_minutes', 'intl_plan')
    """
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", text)
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def read_schema(path: Path) -> CsvSchema:
    """Read a schema; raises SchemaMismatchError that names the file and each wrong entry."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return CsvSchema.model_validate(document)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SchemaMismatchError(f"{path.name} can't be read: {first_line(error)}") from error
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc'])) or 'schema'}: {e['msg']}" for e in error.errors()]
        raise SchemaMismatchError(f"{path.name}: {'; '.join(found)}") from error


def file_sha256(path: Path) -> str:
    """Return the hash of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_csv(path: Path, schema: CsvSchema) -> pd.DataFrame:
    """Return the labelled rows as the trainer wants them, in the file's order.

    Grain: one row a key. Raises a DataError that names file, column and rows for whatever the schema does not
    allow: other columns, other types, an unknown label, a key twice, a feature without any value, one class.
    """
    text = _read_text(path, schema)
    _require_columns(path, list(text.columns), schema)
    if text.empty:
        raise EmptyWindowError(f"{path.name} has a header and no rows")
    snapshot = pd.Timestamp(schema.snapshot)
    frame = {schema.key_name: _key(path, text[schema.key.column], schema), "event_timestamp": snapshot}
    frame |= {f.feature: _feature(path, text[f.column], f, schema) for f in schema.features}
    frame[LABEL] = _label(path, text[schema.label.column], schema)
    frame["label_known_at"] = snapshot + pd.Timedelta(days=schema.label_delay_days)
    return pd.DataFrame(frame)


def _read_text(path: Path, schema: CsvSchema) -> pd.DataFrame:
    """Return every field as its text."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding=schema.encoding, newline="") as file:
            rows = list(csv.reader(file, delimiter=schema.separator, strict=True))
    except UnicodeDecodeError as error:
        raise SchemaMismatchError(
            f"{path.name} is not {schema.encoding}: byte {error.object[error.start]:#04x} can't be read; "
            "set `encoding` in the schema"
        ) from error
    except (csv.Error, OSError, EOFError, LookupError, zlib.error) as error:
        raise SchemaMismatchError(f"{path.name} can't be read as CSV: {first_line(error)}") from error
    while rows and not rows[-1]:
        rows.pop()  # empty lines at the end
    if not rows:
        raise EmptyWindowError(f"{path.name} is empty")
    header, body = [name.removeprefix("\ufeff") for name in rows[0]], rows[1:]
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise SchemaMismatchError(f"{path.name}: columns stand twice: {twice}")
    uneven = pd.Series([len(row) != len(header) for row in body], dtype=bool)
    if uneven.any():
        first = int(np.flatnonzero(uneven)[0])
        raise SchemaMismatchError(
            f"{path.name}: {len(header)} fields as in the header are needed: {_rows(uneven)} "
            f"(the first has {len(body[first])})"
        )
    columns = zip(*body, strict=True) if body else [()] * len(header)
    return pd.DataFrame(dict(zip(header, columns, strict=True)), dtype=object)


def _require_columns(path: Path, found: list[str], schema: CsvSchema) -> None:
    missing = [column for column in schema.columns if column not in found]
    extra = [column for column in found if column not in schema.columns]
    if missing or extra:
        raise SchemaMismatchError(
            f"{path.name}: columns differ from schema {schema.name}: missing {missing}, unexpected {extra} "
            "(list what is not wanted under `ignore`)"
        )


def _key(path: Path, values: pd.Series, schema: CsvSchema) -> pd.Series:
    column = schema.key.column
    if (values == "").any():
        raise SchemaMismatchError(f"{path.name}, column {column}: no key in {_rows(values == '')}")
    keys = values
    if schema.key.type == "int64":
        good = values.str.fullmatch(r"[+-]?[0-9]{1,18}")
        if not good.all():
            raise SchemaMismatchError(
                f"{path.name}, column {column}: not whole numbers: {_rows(~good, values)}"
            )
        keys = values.astype("int64")
    twice = keys.duplicated(keep=False)
    if twice.any():
        raise SchemaMismatchError(f"{path.name}, column {column}: keys stand twice: {_rows(twice, values)}")
    return keys


def _feature(path: Path, values: pd.Series, feature: FeatureColumn, schema: CsvSchema) -> pd.Series:
    """Return a float64 or object column with nulls for what is missing."""
    place = f"{path.name}, column {feature.column}"
    missing = values.isin([*schema.missing, *feature.missing])
    if missing.all():
        raise SchemaMismatchError(f"{place}: not one value in {len(values)} rows")
    if feature.type == "categorical":
        kept = values.astype(object).where(~missing, None)
        kinds = kept.nunique()
        if kinds > max(len(values) / 2, 100):
            raise SchemaMismatchError(
                f"{place}: {kinds} different values in {len(values)} rows are no category"
            )
        return kept
    numbers = pd.to_numeric(values.where(~missing), errors="coerce").astype("float64")
    bad = ~missing & ~np.isfinite(numbers)
    if bad.any():
        raise SchemaMismatchError(f"{place}: not numbers: {_rows(bad, values)}")
    return numbers


def _label(path: Path, values: pd.Series, schema: CsvSchema) -> pd.Series:
    label = schema.label
    place = f"{path.name}, column {label.column}"
    unknown = ~values.isin([label.positive, label.negative])
    if unknown.any():
        raise SchemaMismatchError(
            f"{place}: neither {label.positive!r} nor {label.negative!r}: {_rows(unknown, values)}"
        )
    if values.nunique() == 1:
        raise OneClassLabelsError(f"{place}: every row is {values.iloc[0]!r}, both classes are needed")
    return (values == label.positive).astype("int8")


def _rows(bad: pd.Series, values: pd.Series | None = None) -> str:
    """Name the first bad rows, with their values, and count the others.

    >>> _rows(pd.Series([False, True]), pd.Series(["1", "x"]))
    "'x' in row 3"
    """
    positions = np.flatnonzero(bad.to_numpy())
    shown = [
        f"row {position + 2}" if values is None else f"{values.iloc[position]!r} in row {position + 2}"
        for position in positions[:SHOWN]
    ]
    more = f" and {len(positions) - SHOWN} more" if len(positions) > SHOWN else ""
    return ", ".join(shown) + more


def _once(names: list[str], what: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{what} that stand twice: {twice}")
