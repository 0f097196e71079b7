"""A verdict can't be altered, removed or moved without the chain showing it."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common_ml_utils.errors import LedgerError
from common_ml_utils.promotion.ledger import GENESIS, PromotionLedger, check_chain, entry_hash
from common_ml_utils.settings import DatabaseAddress


def chain(length: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    previous = GENESIS
    for number in range(1, length + 1):
        decided_at = datetime(2024, 1, number, tzinfo=UTC)
        entry = {
            "model_name": "m",
            "decision": "promote",
            "challenger": {"version": number, "bundle_sha256": f"{number}" * 64},
            "decided_at": decided_at.isoformat(),
        }
        digest = entry_hash(previous, entry)
        rows.append(
            {
                "seq": number,
                "model_name": "m",
                "decision": "promote",
                "decided_at": decided_at,
                "entry": entry,
                "prev_hash": previous,
                "hash": digest,
            }
        )
        previous = digest
    return rows


def test_an_untouched_chain_passes() -> None:
    check_chain([])
    check_chain(chain(5))


@given(st.integers(0, 4))
def test_an_altered_entry_is_found_where_it_stands(position: int) -> None:
    rows = copy.deepcopy(chain(5))
    rows[position]["entry"]["challenger"]["version"] = 99
    with pytest.raises(LedgerError, match=f"entry {position + 1}$"):
        check_chain(rows)


@given(st.integers(0, 3))
def test_a_removed_entry_is_found(position: int) -> None:
    rows = chain(5)
    del rows[position]
    with pytest.raises(LedgerError, match=f"entry {position + 1}$"):
        check_chain(rows)


@pytest.mark.parametrize(
    "altered",
    [{"decision": "refuse"}, {"model_name": "n"}, {"decided_at": datetime(2023, 1, 1, tzinfo=UTC)}],
)
def test_a_column_that_differs_from_the_entry_is_found(altered: dict[str, Any]) -> None:
    rows = chain(2)
    rows[1] |= altered
    with pytest.raises(LedgerError, match="columns and entry differ"):
        check_chain(rows)


def test_the_hash_does_not_hang_on_the_order_of_keys() -> None:
    assert entry_hash(GENESIS, {"a": 1, "b": 2}) == entry_hash(GENESIS, {"b": 2, "a": 1})


def test_a_database_that_does_not_answer_is_a_ledger_error() -> None:
    nowhere = DatabaseAddress(
        host="127.0.0.1", port=1, name="decisions", user="u", password="secret-password"
    )
    with pytest.raises(LedgerError, match=r"127\.0\.0\.1:1/decisions") as caught:
        PromotionLedger(nowhere).rows()
    assert "secret-password" not in str(caught.value)
