"""Columns of NumPy values as one PostgreSQL binary COPY stream, without a Python object a value.

Format: the "Binary Format" section of PostgreSQL's COPY reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

PostgresType = Literal["smallint", "bigint", "double precision", "date", "timestamptz"]

SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
# PostgreSQL counts days and microseconds from here.
EPOCH = np.datetime64("2000-01-01")
WIRE_TYPE: dict[PostgresType, str] = {
    "smallint": ">i2",
    "bigint": ">i8",
    "double precision": ">f8",
    "date": ">i4",
    "timestamptz": ">i8",
}


@dataclass(frozen=True)
class Column:
    """One column without nulls: int16, int64, float64, datetime64[D] or (in UTC) datetime64[us] values."""

    name: str
    type: PostgresType
    values: NDArray[Any]


def encode(columns: Sequence[Column]) -> bytes:
    """Return the whole stream of the columns' rows.

    ValueError where lengths differ or a time is missing, TypeError where values don't fit their type.

    >>> encode([Column("id", "smallint", np.array([7], dtype=np.int16))])[19:]
    b'\\x00\\x01\\x00\\x00\\x00\\x02\\x00\\x07\\xff\\xff'
    """
    lengths = {len(column.values) for column in columns}
    if len(lengths) != 1:
        raise ValueError(f"columns of different lengths: {sorted(lengths)}")
    layout: list[tuple[str, str]] = [("fields", ">i2")]
    for index, column in enumerate(columns):
        layout += [(f"size{index}", ">i4"), (f"value{index}", WIRE_TYPE[column.type])]
    rows = np.empty(lengths.pop(), dtype=layout)
    rows["fields"] = len(columns)
    for index, column in enumerate(columns):
        rows[f"size{index}"] = np.dtype(WIRE_TYPE[column.type]).itemsize
        rows[f"value{index}"] = _wire_values(column)
    return SIGNATURE + rows.tobytes() + TRAILER


def _wire_values(column: Column) -> NDArray[Any]:
    values = column.values
    if column.type in ("date", "timestamptz"):
        unit = "D" if column.type == "date" else "us"
        if values.dtype != np.dtype(f"datetime64[{unit}]"):
            raise TypeError(f"{column.name}: {values.dtype} values for a {column.type}")
        if np.isnat(values).any():
            raise ValueError(f"{column.name}: a {column.type} is missing")
        values = (values - EPOCH.astype(values.dtype)).view(np.int64)
        # The calendar of NumPy is larger than the four bytes of a date.
        if column.type == "date" and len(values) and np.abs(values).max() > np.iinfo(np.int32).max:
            raise ValueError(f"{column.name}: a date is out of range")
        return values.astype(WIRE_TYPE[column.type], casting="unsafe")
    try:
        return values.astype(WIRE_TYPE[column.type], casting="safe")
    except TypeError:
        raise TypeError(f"{column.name}: {values.dtype} values for a {column.type}") from None
