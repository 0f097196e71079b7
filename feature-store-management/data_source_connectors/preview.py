"""Command: show the columns and first rows of a table, path or URL of a named connection.

python -m data_source_connectors.preview CONNECTION TABLE|PATH|URL [--columns A,B] [--rows N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

import pyarrow as pa

from .connection_config import connections_file, open_source, read_connection
from .errors import SourceError
from .settings import SettingsError

BAD_USAGE = 2
MAX_ROWS = 1000
CELL_WIDTH = 40


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"{self.prog}: {message} (--help lists the options)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, 1 where the source can't be read, 2 for wrong usage or settings."""
    parser = _Parser(
        prog="python -m data_source_connectors.preview",
        description="Show the columns and first rows of a source. Connections stand in $CONNECTIONS_FILE.",
    )
    parser.add_argument("connection", help="name of a section of the file of connections")
    parser.add_argument("item", metavar="TABLE|PATH|URL", help="schema.table, bucket/key, or path of the API")
    parser.add_argument(
        "--columns", type=lambda text: text.split(","), help="only these, separated by commas"
    )
    parser.add_argument("--rows", type=_rows, default=10, help=f"1 to {MAX_ROWS}, default 10")
    options = parser.parse_args(arguments)
    try:
        source = open_source(read_connection(options.connection, connections_file()))
        table = first_rows(
            source.read_batches(options.item, columns=options.columns, batch_rows=options.rows), options.rows
        )
    except SettingsError as error:
        print(error, file=sys.stderr)
        return BAD_USAGE
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    print(shown(table))
    return 0


def _rows(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= MAX_ROWS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_ROWS}")


def first_rows(batches: Iterator[pa.RecordBatch], rows: int) -> pa.Table:
    """Return the first rows, reading no further batch than needed."""
    taken: list[pa.RecordBatch] = []
    missing = rows
    for batch in batches:
        taken.append(batch.slice(0, missing))
        missing -= taken[-1].num_rows
        if missing <= 0:
            break
    return pa.Table.from_batches(taken)


def shown(table: pa.Table) -> str:
    """Return columns with their types, then the rows, as text for a terminal."""
    width = max((len(name) for name in table.column_names), default=0)
    lines = [f"{field.name:<{width}}  {field.type}" for field in table.schema]
    cells = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    widths = [max(map(len, [name, *column])) for name, column in zip(table.column_names, cells, strict=True)]
    rows = [table.column_names, *zip(*cells, strict=True)] if table.num_rows else []
    lines += ["", *(_line(row, widths) for row in rows)] if rows else ["", "no rows"]
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))


def _cell(value: object) -> str:
    text = "" if value is None else "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
