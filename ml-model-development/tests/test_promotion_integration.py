"""The ledger on the running stack's PostgreSQL: older tables, all decisions, what production was, crashes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from pydantic import ValidationError
from test_promotion_commands import Aliases, named

from common_ml_utils.errors import LedgerError, RegistryError
from common_ml_utils.promotion.commands import approve, problems_of, roll_back
from common_ml_utils.promotion.ledger import GENESIS, PromotionLedger, entry_hash, production_at
from common_ml_utils.settings import PlatformSettings

pytestmark = pytest.mark.integration

NAME = "m"
OLD_TABLE = """
CREATE SCHEMA {schema};
CREATE TABLE {schema}.promotion_ledger (
    seq bigint PRIMARY KEY,
    model_name text NOT NULL,
    decided_at timestamptz NOT NULL,
    decision text NOT NULL CHECK (decision IN ('promote', 'refuse')),
    entry jsonb NOT NULL,
    prev_hash text NOT NULL,
    hash text NOT NULL UNIQUE
);
"""


@pytest.fixture
def database() -> Iterator[tuple[psycopg.Connection, PromotionLedger, sql.Identifier]]:
    """A connection and a ledger in a schema of this test's own, removed afterwards."""
    try:
        stack = PlatformSettings()
    except ValidationError as error:
        missing = sorted(str(problem["loc"][0]) for problem in error.errors())
        pytest.fail(f"the stack's environment is not loaded (source its stack.env); not set: {missing}")
    schema = f"test_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(**stack.decisions_db.connection_arguments(), autocommit=True) as connection:
        yield connection, PromotionLedger(stack.decisions_db, schema), sql.Identifier(schema)
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def test_a_table_of_the_first_form_takes_all_decisions_and_keeps_its_chain(
    database: tuple[psycopg.Connection, PromotionLedger, sql.Identifier],
) -> None:
    connection, ledger, schema = database
    connection.execute(sql.SQL(OLD_TABLE).format(schema=schema))
    decided_at = "2024-01-01T00:00:00+00:00"
    entry = {"model_name": NAME, "decision": "promote", "decided_at": decided_at, "challenger": named(1)}
    insert = sql.SQL("INSERT INTO {}.promotion_ledger VALUES (1, %s, %s, 'promote', %s, %s, %s)").format(
        schema
    )
    connection.execute(insert, [NAME, decided_at, Jsonb(entry), GENESIS, entry_hash(GENESIS, entry)])

    with ledger.appending(
        NAME,
        "needs approval",
        {"challenger": named(2), "in_production": named(1), "reasons": ["undecided"]},
    ):
        pass
    registry = Aliases({"staging": 2, "champion": 1})
    assert approve(registry, ledger, NAME, "Ada", "fine").version == 2
    assert roll_back(registry, ledger, NAME, "Bob", "not fine").version == 1

    rows = ledger.rows()
    assert [row["decision"] for row in rows] == ["promote", "needs approval", "approve", "rollback"]
    approved_at = rows[2]["decided_at"]
    before, then = approved_at - timedelta(microseconds=1), approved_at
    assert [production_at(rows, time)[NAME].version for time in (before, then)] == [1, 2]
    assert problems_of(rows, {NAME: 1}) == []
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(
            sql.SQL("UPDATE {}.promotion_ledger SET decision = 'shrug' WHERE seq = 2").format(schema)
        )


def test_a_move_whose_entry_is_lost_shows_and_an_entry_without_its_move_does_not_stand(
    database: tuple[psycopg.Connection, PromotionLedger, sql.Identifier],
) -> None:
    _, ledger, _ = database
    registry = Aliases({"staging": 2, "champion": 1, "previous": 3})
    with ledger.appending(NAME, "promote", {"in_production": named(1)}):
        pass
    registry.fails = True
    with pytest.raises(RegistryError):
        roll_back(registry, ledger, NAME, "Bob", "reason")
    assert len(ledger.rows()) == 1
    registry.fails = False

    def killed() -> None:
        with ledger.appending(NAME, "promote", {"in_production": named(2)}):
            registry.promote(NAME, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    [problem] = problems_of(ledger.rows(), {NAME: registry.aliases["champion"]})
    assert "version 2 is champion, but the ledger's entry 1 put version 1" in problem


def test_a_decision_between_reading_and_writing_is_noticed(
    database: tuple[psycopg.Connection, PromotionLedger, sql.Identifier],
) -> None:
    _, ledger, _ = database
    rows = ledger.rows()
    with ledger.appending("other", "refuse", {}):
        pass
    with pytest.raises(LedgerError, match="run it again"), ledger.appending(NAME, "refuse", {}, after=rows):
        pass
    assert len(ledger.rows()) == 1
