"""The promotion ledger: every verdict of the gate, each row hashed over the one before it.

Table `scoring.promotion_ledger` of database `decisions`, one row a verdict. An altered, removed or reordered
row breaks the chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from common_ml_utils.errors import LedgerError, first_line
from common_ml_utils.settings import DatabaseAddress

GENESIS = "0" * 64
CREATE = """
SELECT pg_advisory_xact_lock(hashtext('promotion_ledger'));
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.promotion_ledger (
    seq bigint PRIMARY KEY,
    model_name text NOT NULL,
    decided_at timestamptz NOT NULL,
    decision text NOT NULL CHECK (decision IN ('promote', 'refuse')),
    entry jsonb NOT NULL,
    prev_hash text NOT NULL,
    hash text NOT NULL UNIQUE
);
"""


def entry_hash(prev_hash: str, entry: Mapping[str, Any]) -> str:
    """Return SHA-256 over the previous hash and the entry as canonical JSON."""
    canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{prev_hash}\n{canonical}".encode()).hexdigest()


def check_chain(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise LedgerError at the first row, in order of `seq`, that does not follow from the one before."""
    previous = GENESIS
    for number, row in enumerate(rows, start=1):
        entry = row["entry"]
        if row["seq"] != number or row["prev_hash"] != previous or entry_hash(previous, entry) != row["hash"]:
            raise LedgerError(f"the promotion ledger is broken at entry {number}")
        if entry["decision"] != row["decision"] or entry["model_name"] != row["model_name"]:
            raise LedgerError(f"the promotion ledger is broken at entry {number}: columns and entry differ")
        previous = row["hash"]


class PromotionLedger:
    """Appends to and reads the ledger; a failure to reach it is a LedgerError."""

    def __init__(self, database: DatabaseAddress, schema: str = "scoring") -> None:
        self._database = database
        self._schema = sql.Identifier(schema)

    @contextmanager
    def appending(self, model_name: str, decision: str, entry: Mapping[str, Any]) -> Iterator[str]:
        """Append a verdict and give its hash; it stands only if the block, which acts on it, succeeds."""
        with self._connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(self._sql(CREATE))
            cursor.execute(
                self._sql("SELECT seq, hash FROM {schema}.promotion_ledger ORDER BY seq DESC LIMIT 1")
            )
            last = cursor.fetchone()
            seq, previous = (last["seq"] + 1, last["hash"]) if last else (1, GENESIS)
            decided_at = datetime.now(UTC)
            full = {
                **entry,
                "model_name": model_name,
                "decision": decision,
                "decided_at": decided_at.isoformat(),
            }
            # Hash what the table will give back: jsonb has its own numbers (-0.0 is 0, 1e22 is written out).
            cursor.execute("SELECT %s::jsonb AS entry", [Jsonb(full)])
            stored = cursor.fetchone()
            assert stored is not None
            digest = entry_hash(previous, stored["entry"])
            cursor.execute(
                self._sql(
                    "INSERT INTO {schema}.promotion_ledger"
                    " (seq, model_name, decided_at, decision, entry, prev_hash, hash)"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s)"
                ),
                [seq, model_name, decided_at, decision, Jsonb(full), previous, digest],
            )
            yield digest

    def rows(self) -> list[dict[str, Any]]:
        """Return all entries in order, after checking the chain."""
        with self._connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(self._sql(CREATE))
            cursor.execute(self._sql("SELECT * FROM {schema}.promotion_ledger ORDER BY seq"))
            rows = cursor.fetchall()
        check_chain(rows)
        return rows

    def _sql(self, statement: LiteralString) -> sql.Composed:
        return sql.SQL(statement).format(schema=self._schema)

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection]:
        try:
            with psycopg.connect(**self._database.connection_arguments()) as connection:
                yield connection
        except psycopg.Error as error:
            address = f"{self._database.host}:{self._database.port}/{self._database.name}"
            raise LedgerError(f"the promotion ledger at {address} failed: {first_line(error)}") from error
