"""The promotion ledger: every verdict and every move of production, each row hashed over the one before it.

Table `scoring.promotion_ledger` of database `decisions`, one row a decision. An altered, removed or
reordered row breaks the chain. `promote`, `approve` and `rollback` put a version into production; their entry
says which under `in_production`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from common_ml_utils.errors import LedgerError, first_line
from common_ml_utils.settings import DatabaseAddress

GENESIS = "0" * 64
DECISIONS = ("promote", "refuse", "needs approval", "approve", "rollback")
MOVES = ("promote", "approve", "rollback")
CHECK = "promotion_ledger_decision_check"
LOCK = "SELECT pg_advisory_xact_lock(hashtext('promotion_ledger'))"
CREATE = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.promotion_ledger (
    seq bigint PRIMARY KEY,
    model_name text NOT NULL,
    decided_at timestamptz NOT NULL,
    decision text NOT NULL,
    entry jsonb NOT NULL,
    prev_hash text NOT NULL,
    hash text NOT NULL UNIQUE
);
"""
CHECK_OF = """
SELECT pg_get_constraintdef(c.oid) AS definition
FROM pg_constraint c
JOIN pg_class t ON t.oid = c.conrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = {schema} AND t.relname = 'promotion_ledger' AND c.conname = {check}
"""


@dataclass(frozen=True)
class Production:
    """A version in production since a time (UTC), and the entry that put it there."""

    model_name: str
    version: int
    bundle_sha256: str
    since: datetime
    decision: str
    seq: int
    by: str
    reason: str


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
        same = all(entry[name] == row[name] for name in ("decision", "model_name"))
        if not same or datetime.fromisoformat(entry["decided_at"]) != row["decided_at"]:
            raise LedgerError(f"the promotion ledger is broken at entry {number}: columns and entry differ")
        previous = row["hash"]


def production_at(rows: Sequence[Mapping[str, Any]], time: datetime | None = None) -> dict[str, Production]:
    """Return what was in production at a time (UTC; None: now), by model name."""
    found: dict[str, Production] = {}
    for row in rows:
        if row["decision"] not in MOVES or (time is not None and row["decided_at"] > time):
            continue
        entry = row["entry"]
        # An entry of the first form says it under `challenger` alone.
        moved_to = entry.get("in_production") or entry["challenger"]
        found[row["model_name"]] = Production(
            model_name=row["model_name"],
            version=moved_to["version"],
            bundle_sha256=moved_to["bundle_sha256"],
            since=row["decided_at"],
            decision=row["decision"],
            seq=row["seq"],
            by=entry.get("by", "the gate"),
            reason=entry.get("reason") or "; ".join(entry.get("reasons", [])),
        )
    return found


def disagreement(model_name: str, recorded: Production | None, champion: int | None) -> str | None:
    """Say how the alias `champion` differs from the ledger, or return None where they agree."""
    if (None if recorded is None else recorded.version) == champion:
        return None
    alias = "no version is champion" if champion is None else f"version {champion} is champion"
    ledger = (
        "the ledger has put none into production"
        if recorded is None
        else f"the ledger's entry {recorded.seq} put version {recorded.version} into production"
    )
    return (
        f"{model_name}: {alias}, but {ledger}: an alias was moved by hand, or a crash came between the move "
        "and its entry"
    )


def last_rollback_of(
    rows: Sequence[Mapping[str, Any]], model_name: str, bundle_sha256: str
) -> Mapping[str, Any] | None:
    """Return the entry that last took a bundle out of production, unless it was put back since."""
    last = None
    for row in rows:
        entry = row["entry"]
        if row["model_name"] != model_name or row["decision"] not in MOVES:
            continue
        if row["decision"] == "rollback" and entry["rolled_back"]["bundle_sha256"] == bundle_sha256:
            last = row
        elif (entry.get("in_production") or entry["challenger"])["bundle_sha256"] == bundle_sha256:
            last = None
    return last


class PromotionLedger:
    """Appends to and reads the ledger; a failure to reach it is a LedgerError."""

    def __init__(self, database: DatabaseAddress, schema: str = "scoring") -> None:
        self._database = database
        self._name = schema
        self._schema = sql.Identifier(schema)

    @contextmanager
    def appending(
        self,
        model_name: str,
        decision: str,
        entry: Mapping[str, Any],
        after: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[str]:
        """Append a decision and give its hash; it stands only if the block, which acts on it, succeeds.

        With `after`, the rows the decision rests on, it is an error when others were written since.
        """
        if decision not in DECISIONS:
            raise ValueError(f"{decision!r} is not one of {DECISIONS}")
        with self._connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            self._prepare(cursor)
            cursor.execute(
                self._sql("SELECT seq, hash FROM {schema}.promotion_ledger ORDER BY seq DESC LIMIT 1")
            )
            last = cursor.fetchone()
            seq, previous = (last["seq"] + 1, last["hash"]) if last else (1, GENESIS)
            if after is not None and previous != (after[-1]["hash"] if after else GENESIS):
                raise LedgerError(
                    "another decision was written to the promotion ledger meanwhile: run it again"
                )
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
            self._prepare(cursor)
            cursor.execute(self._sql("SELECT * FROM {schema}.promotion_ledger ORDER BY seq"))
            rows = cursor.fetchall()
        check_chain(rows)
        return rows

    def _prepare(self, cursor: psycopg.Cursor[Any]) -> None:
        """Lock the ledger, create it, and widen the check of an older table to all decisions."""
        cursor.execute(LOCK)
        cursor.execute(self._sql(CREATE))
        cursor.execute(sql.SQL(CHECK_OF).format(schema=sql.Literal(self._name), check=sql.Literal(CHECK)))
        found = cursor.fetchone()
        if found is not None and all(f"'{decision}'" in found["definition"] for decision in DECISIONS):
            return
        cursor.execute(
            sql.SQL(
                "ALTER TABLE {schema}.promotion_ledger DROP CONSTRAINT IF EXISTS {check},"
                " ADD CONSTRAINT {check} CHECK (decision IN ({decisions}))"
            ).format(
                schema=self._schema,
                check=sql.Identifier(CHECK),
                decisions=sql.SQL(", ").join(sql.Literal(decision) for decision in DECISIONS),
            )
        )

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
