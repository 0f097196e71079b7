"""The values of a feature view as of each entity row, read in slices so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_contract import FeatureContract, ViewContract
from training_sets.errors import FeatureTableError
from training_sets.feature_tables import CREATED, EVENT, Extract, FeatureTables
from training_sets.point_in_time import NOTHING, History, Integers, Truths, latest_known

SLICE_ROWS = 4_000_000  # of a feature table, at about 100 bytes
FEW_KEYS = 1_000
FEW_QUESTIONS = 20_000
ARROW_TYPES = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}


@dataclass
class Looked:
    """What a view says of each entity row: null where it says nothing, the old value where it is stale."""

    values: dict[str, pa.Array]
    stale: Truths
    missing: Truths


@dataclass
class Reading:
    """What was read of a view's table: for the manifest."""

    table: str
    rows_read: int = 0
    newest_event: int | None = None
    newest_created: int | None = None
    entity_rows_without_value: int = 0

    def note(self, history: History) -> None:
        """Count the rows of one more slice."""
        if len(history):
            self.rows_read += len(history)
            self.newest_event = max(int(history.event.max()), self.newest_event or NOTHING)
            self.newest_created = max(int(history.created.max()), self.newest_created or NOTHING)


@dataclass(frozen=True)
class ViewReader:
    """Looks a view up for entity rows; `keeps_stale` reads rows older than the time to live too."""

    contract: FeatureContract
    view: ViewContract
    tables: FeatureTables
    fields: Sequence[str]
    keeps_stale: bool
    slice_rows: int = SLICE_ROWS
    reading: Reading = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reading", Reading(self.tables.name(self.view.name)))

    @property
    def key(self) -> str:
        """The join key of the view's entity."""
        [key] = [entity.join_key for entity in self.contract.entities if entity.name == self.view.entity]
        return key

    @property
    def ttl(self) -> int:
        """The time to live in microseconds."""
        return self.view.ttl_seconds * 1_000_000

    def look_up(self, keys: Integers, moments: Integers) -> Looked:
        """Return the view's values for each key as of its moment (microseconds since the epoch, UTC)."""
        parts: list[tuple[Integers, Looked]] = []
        for asked in slices(keys, moments, self.tables.rows(self.view.name), self.ttl, self.slice_rows):
            whole = len(asked) == len(keys)
            parts.append((asked, self._look_up_slice(keys[asked], moments[asked], whole)))
        looked = parts[0][1] if len(parts) == 1 else _in_order(parts)
        self.reading.entity_rows_without_value += int((looked.missing | looked.stale).sum())
        return looked

    def _look_up_slice(self, keys: Integers, moments: Integers, whole: bool) -> Looked:
        few = np.unique(keys) if len(keys) <= FEW_QUESTIONS else keys
        extract = Extract(
            key=self.key,
            fields=self.fields,
            true_since=None if self.keeps_stale else int(moments.min()) - self.ttl,
            true_until=int(moments.max()),
            keys=None if whole else (int(keys.min()), int(keys.max())),
            few_keys=few.tolist() if len(few) <= FEW_KEYS else (),
        )
        table = self.tables.read(self.view.name, extract)
        history = self._history(table)
        self.reading.note(history)
        try:
            rows = latest_known(history, keys, moments)
        except FeatureTableError as error:
            raise FeatureTableError(f"{self.reading.table}: {error}") from error
        missing = rows == NOTHING
        stale = np.zeros(len(rows), dtype=bool)
        stale[~missing] = history.event[rows[~missing]] < moments[~missing] - self.ttl
        places = pa.array(rows, mask=missing)
        types = {declared.name: ARROW_TYPES[declared.type] for declared in self.view.fields}
        values = {name: self._column(table, name, types[name]).take(places) for name in self.fields}
        return Looked(values, stale, missing)

    def _history(self, table: pa.Table) -> History:
        moment = pa.timestamp("us", "UTC")
        event, created = (self._column(table, name, moment, nulls=False) for name in (EVENT, CREATED))
        return History(
            self._column(table, self.key, pa.int64(), nulls=False).to_numpy(),
            event.cast(pa.int64()).to_numpy(),
            created.cast(pa.int64()).to_numpy(),
        )

    def _column(self, table: pa.Table, name: str, kind: pa.DataType, *, nulls: bool = True) -> pa.Array:
        try:
            column = table[name].combine_chunks().cast(kind)
        except pa.ArrowException as error:
            raise FeatureTableError(f"{self.reading.table}: {name} is no {kind}: {error}") from error
        if column.null_count and not nulls:
            raise FeatureTableError(f"{self.reading.table}: {name} is null in {column.null_count} rows")
        return column


def slices(keys: Integers, moments: Integers, rows: int, ttl: int, slice_rows: int) -> Iterator[Integers]:
    """Yield the indices of the questions in parts for each of which about `slice_rows` rows are to be read.

    Parts are of neighbouring times where the time to live is short against them, for a part then needs only
    the table's rows of its time; otherwise of neighbouring keys.
    """
    count = -(-rows // slice_rows)
    if count <= 1:
        yield np.arange(len(keys))
        return
    by_time = ttl * count < int(moments.max()) - int(moments.min())
    order = np.argsort(moments if by_time else keys, kind="stable")
    yield from np.array_split(order, min(count, len(keys)))


def _in_order(parts: Sequence[tuple[Integers, Looked]]) -> Looked:
    """Put the answers of slices in the order of the questions."""
    order = np.concatenate([asked for asked, _ in parts])
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    looked = [part for _, part in parts]
    values = {
        name: pc.take(
            pa.chunked_array([part.values[name] for part in looked]), pa.array(back)
        ).combine_chunks()
        for name in looked[0].values
    }
    stale, missing = (
        np.concatenate([getattr(part, name) for part in looked])[back] for name in ("stale", "missing")
    )
    return Looked(values, stale, missing)
