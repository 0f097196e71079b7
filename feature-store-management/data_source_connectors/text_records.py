"""Records in JSON, NDJSON and CSV as record batches, without network; errors are ValueError or Arrow's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import IO, Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.csv as pacsv

from .batch_source import sliced

Format = Literal["json", "ndjson", "csv"]
Record = dict[str, Any]

CSV_BLOCK_BYTES = 2**20
MISSING = object()


def json_document(content: IO[bytes]) -> Any:
    """Return the decoded JSON; ValueError where it is none."""
    try:
        return msgspec.json.decode(content.read())
    except msgspec.DecodeError as error:
        raise ValueError(f"not JSON: {error}") from None


def at_path(document: Any, path: str, missing: Any = MISSING) -> Any:
    """Return what stands at a path of keys, `missing` or ValueError where nothing does.

    >>> at_path({"data": {"items": [1]}}, "data.items")
    [1]
    """
    for key in filter(None, path.split(".")):
        if not isinstance(document, dict) or key not in document:
            if missing is MISSING:
                raise ValueError(f"nothing at {path!r}")
            return missing
        document = document[key]
    return document


def records_of(document: Any, path: str) -> list[Record]:
    """Return the list of objects at a path of keys; ValueError where it is something else."""
    records = at_path(document, path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"no list of objects at {path!r}" if path else "the reply is no list of objects")
    return records


def ndjson_batches(
    content: IO[bytes], columns: Sequence[str] | None, batch_rows: int, schema: pa.Schema | None
) -> Iterator[pa.RecordBatch]:
    """Yield the objects, one a line, as batches; blank lines are passed over."""
    return json_batches(_ndjson_records(content), columns, batch_rows, schema)


def _ndjson_records(content: IO[bytes]) -> Iterator[Record]:
    decoder = msgspec.json.Decoder(Record)
    for number, line in enumerate(content, start=1):
        if line.strip():
            try:
                yield decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise ValueError(f"line {number} is no JSON object: {error}") from None


def json_batches(
    records: Iterable[Record], columns: Sequence[str] | None, batch_rows: int, schema: pa.Schema | None
) -> Iterator[pa.RecordBatch]:
    """Yield objects as batches of one schema: the given one, else that of the first batch.

    A column that is null throughout the first batch is text. ValueError where a later object has a field, or
    a value, that doesn't fit; fields outside a given schema or the columns wanted are left out.
    """
    rest = iter(records)
    first = list(islice(rest, batch_rows))
    wanted = _selected(_schema_of(first) if schema is None else schema, columns)
    known = set(wanted.names) if schema is None and columns is None else None
    yield _batch(first, wanted, known)
    while chunk := list(islice(rest, batch_rows)):
        yield _batch(chunk, wanted, known)


def _schema_of(records: Sequence[Record]) -> pa.Schema:
    names = dict.fromkeys(name for record in records for name in record)
    fields = []
    for name in names:
        found = _array(name, [record.get(name) for record in records], None).type
        fields.append(pa.field(name, pa.string() if pa.types.is_null(found) else found))
    return pa.schema(fields)


def _selected(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    if columns is None:
        return schema
    if missing := [name for name in columns if name not in schema.names]:
        raise ValueError(f"no column {', '.join(missing)} (there are: {', '.join(schema.names)})")
    return pa.schema([schema.field(name) for name in columns])


def _batch(records: Sequence[Record], schema: pa.Schema, known: set[str] | None) -> pa.RecordBatch:
    if known is not None and (new := {name for record in records for name in record} - known):
        raise ValueError(f"a later row has the new field {', '.join(sorted(new))}: state a schema")
    arrays = [
        _array(column.name, [record.get(column.name) for record in records], column.type) for column in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(name: str, values: list[Any], type_: pa.DataType | None) -> pa.Array:
    try:
        found = pa.array(values)
        if type_ is None or found.type == type_:
            return found
        if not _may_become(found.type, type_):
            raise ValueError(f"column {name}: {found.type} where {type_} is expected")
        return found.cast(
            type_
        )  # refuses what would lose something; pa.array(values, type_) would cut 2.5 to 2
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"column {name}: {error}") from None


def _may_become(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_null(found) or (pa.types.is_nested(found) and pa.types.is_nested(wanted)):
        return True
    if pa.types.is_string(found):  # JSON has times and exact decimals as text only
        return pa.types.is_temporal(wanted) or pa.types.is_decimal(wanted) or pa.types.is_large_string(wanted)
    numbers = (pa.types.is_integer(found) or pa.types.is_floating(found)) and not pa.types.is_boolean(found)
    return numbers and (pa.types.is_integer(wanted) or pa.types.is_floating(wanted))


def csv_batches(
    content: IO[bytes], columns: Sequence[str] | None, batch_rows: int, schema: pa.Schema | None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a CSV file with a header line as batches.

    Types not given by a schema are those of the first mebibyte (so 007 is 7: give a type where zeros matter);
    a later value that doesn't fit is refused.
    """
    wanted = list(columns) if columns is not None else schema.names if schema is not None else None
    reader = pacsv.open_csv(
        content,
        read_options=pacsv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False),
        convert_options=pacsv.ConvertOptions(
            column_types=schema,
            include_columns=wanted,
            timestamp_parsers=[pacsv.ISO8601],
        ),
    )
    empty = True
    for batch in filter(len, reader):
        empty = False
        yield from sliced(batch, batch_rows)
    if empty:
        yield pa.RecordBatch.from_pylist([], schema=reader.schema)
