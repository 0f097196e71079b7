"""The one way in which every source is read: record batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

DEFAULT_BATCH_ROWS = 50_000


class BatchSource(Protocol):
    """A source of tables. A new kind of source implements this, and is then read like the others."""

    def read_batches(
        self, item: str, *, columns: Sequence[str] | None = None, batch_rows: int = DEFAULT_BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a table, path or URL, in bounded memory and batches of at most `batch_rows` rows.

        All batches have one schema, and there is at least one, so that an empty table shows its columns too.
        `columns` names the columns wanted, in order. Raises SourceError.
        """


def sliced(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the batch, without copying, in parts of at most `rows` rows; an empty one as it is."""
    for start in range(0, max(batch.num_rows, 1), rows):
        yield batch.slice(start, rows)
