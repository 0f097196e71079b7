"""A person approves exactly what was judged; a move is recorded with it, or neither happens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from promotion_fakes import START, Book

from common_ml_utils.errors import LedgerError, RegistryError
from common_ml_utils.promotion import commands
from common_ml_utils.promotion.commands import (
    approve,
    described,
    lost_verdicts,
    problems_of,
    record_champion,
    reported_hashes,
    roll_back,
)
from common_ml_utils.promotion.ledger import production_at

NAME = "parcel-loss-model"


def sha(version: int) -> str:
    return f"{version:x}" * 64


def named(version: int) -> dict[str, Any]:
    return {"version": version, "bundle_sha256": sha(version)}


@dataclass
class Aliases:
    """A registry of aliases; version n is the bundle `sha(n)`."""

    aliases: dict[str, int]
    fails: bool = False

    def version_of(self, model_name: str, alias: str) -> int | None:
        return self.aliases.get(alias)

    def load_version(self, model_name: str, version: int) -> Any:
        return SimpleNamespace(version=version, bundle=SimpleNamespace(sha256=sha(version)))

    def promote(self, model_name: str, version: int) -> None:
        if self.fails:
            raise RegistryError("the registry went away")
        self.aliases |= {"previous": self.aliases["champion"], "champion": version}

    def rollback(self, model_name: str) -> tuple[int, int]:
        if self.fails:
            raise RegistryError("the registry went away")
        old, new = self.aliases["champion"], self.aliases["previous"]
        self.aliases |= {"champion": new, "previous": old}
        return old, new


@pytest.fixture
def book() -> Book:
    """Version 1 is in production, version 2 was refused, version 3 awaits approval."""
    book = Book()
    book.add(NAME, "promote", challenger=named(1), in_production=named(1), reasons=["first model"])
    book.add(NAME, "refuse", challenger=named(2), in_production=named(1), reasons=["worse"])
    book.add(NAME, "needs approval", challenger=named(3), in_production=named(1), reasons=["undecided"])
    return book


@pytest.fixture
def aliases() -> Aliases:
    return Aliases({"staging": 3, "champion": 1})


def test_an_approval_promotes_the_challenger_that_awaits_it(book: Book, aliases: Aliases) -> None:
    now = approve(aliases, book, NAME, "Ada", "the slice is being retired")
    assert (now.version, now.by, now.reason) == (3, "Ada", "the slice is being retired")
    assert aliases.aliases == {"staging": 3, "champion": 3, "previous": 1}
    row = book.rows()[-1]
    assert (row["decision"], row["entry"]["verdict"]) == ("approve", {"seq": 3, "reasons": ["undecided"]})
    with pytest.raises(LedgerError, match="nothing of parcel-loss-model awaits approval"):
        approve(aliases, book, NAME, "Ada", "again")


@pytest.mark.parametrize("moved", [{"staging": 4}, {"champion": 2}])
def test_an_approval_is_refused_when_an_alias_moved_since(
    book: Book, aliases: Aliases, moved: dict[str, int]
) -> None:
    aliases.aliases |= moved
    before = dict(aliases.aliases)
    with pytest.raises(RegistryError, match="when it was judged and is"):
        approve(aliases, book, NAME, "Ada", "fine")
    assert aliases.aliases == before
    assert len(book.rows()) == 3


def test_only_a_verdict_that_asks_can_be_approved(aliases: Aliases, book: Book) -> None:
    book.add(NAME, "refuse", challenger=named(3), in_production=named(1), reasons=["worse"])
    with pytest.raises(LedgerError, match="its last decision is 'refuse'"):
        approve(aliases, book, NAME, "Ada", "please")
    with pytest.raises(LedgerError, match="it has no decision yet"):
        approve(aliases, Book(), NAME, "Ada", "please")
    assert aliases.aliases["champion"] == 1


@pytest.mark.parametrize("act", [approve, roll_back])
def test_a_move_that_fails_leaves_no_entry(book: Book, aliases: Aliases, act: Any) -> None:
    aliases.aliases["previous"] = 2
    aliases.fails = True
    with pytest.raises(RegistryError, match="went away"):
        act(aliases, book, NAME, "Ada", "reason")
    assert len(book.rows()) == 3
    assert aliases.aliases["champion"] == 1


def test_a_rollback_is_recorded_and_a_second_one_returns(book: Book, aliases: Aliases) -> None:
    approve(aliases, book, NAME, "Ada", "fine")
    back = roll_back(aliases, book, NAME, "Bob", "declines rose")
    assert (back.version, back.decision, back.by) == (1, "rollback", "Bob")
    assert aliases.aliases["champion"] == 1
    assert book.rows()[-1]["entry"]["rolled_back"] == named(3)
    assert roll_back(aliases, book, NAME, "Bob", "it was the weather").version == 3
    assert "rollback by Bob: it was the weather" in described(book.rows()[-1])


def test_without_a_previous_version_there_is_nothing_to_return_to(book: Book, aliases: Aliases) -> None:
    with pytest.raises(RegistryError, match="no previous version"):
        roll_back(aliases, book, NAME, "Bob", "reason")
    assert len(book.rows()) == 3


def test_the_ledger_tells_what_was_in_production_at_a_time(book: Book, aliases: Aliases) -> None:
    approve(aliases, book, NAME, "Ada", "fine")
    roll_back(aliases, book, NAME, "Bob", "declines rose")
    at = [START - timedelta(hours=1), START, START + timedelta(days=3.5), START + timedelta(days=9)]
    versions = [production_at(book.rows(), time).get(NAME) for time in at]
    assert [each.version if each else None for each in versions] == [None, 1, 3, 1]


def test_an_entry_of_the_first_form_counts(book: Book) -> None:
    old = Book()
    old.add(NAME, "promote", challenger=named(7), reasons=["better"])
    assert production_at(old.rows())[NAME].version == 7


def test_a_move_without_an_entry_is_found_and_can_be_recorded(book: Book, aliases: Aliases) -> None:
    assert problems_of(book.rows(), {NAME: 1}) == []
    aliases.aliases["champion"] = 3
    [problem] = problems_of(book.rows(), {NAME: 3})
    assert "version 3 is champion, but the ledger's entry 1 put version 1 into production" in problem
    assert record_champion(aliases, book, NAME, "Ada", "the gate crashed").version == 3
    assert problems_of(book.rows(), {NAME: 3}) == []
    with pytest.raises(LedgerError, match="nothing to record"):
        record_champion(aliases, book, NAME, "Ada", "again")


def test_a_model_the_ledger_never_heard_of_is_found(book: Book) -> None:
    [problem] = problems_of(book.rows(), {NAME: 1, "other": 5})
    assert "other: version 5 is champion, but the ledger has put none into production" in problem
    assert problems_of(book.rows(), {NAME: 1, "other": 5}, NAME) == []


def test_a_row_cut_off_from_the_end_is_found_by_the_report_of_its_verdict(book: Book, tmp_path: Path) -> None:
    (tmp_path / "parcels").mkdir()
    report = {"ledger_hash": book.entries[-1]["hash"]}
    (tmp_path / "parcels" / "gate.json").write_text(json.dumps(report))
    reported = reported_hashes(tmp_path)
    assert lost_verdicts(book.rows(), reported) == []
    book.entries.pop()
    [problem] = lost_verdicts(book.rows(), reported)
    assert "parcels/gate.json reports a verdict" in problem


@pytest.mark.parametrize(
    "arguments",
    [
        ["approve", "--model", "m", "--by", "Ada"],
        ["approve", "--model", "m", "--by", " ", "--reason", "r"],
        ["rollback", "--by", "Ada", "--reason", "r"],
        ["ledger"],
    ],
)
def test_who_and_why_must_be_given(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.main(arguments)
    assert "usage" in capsys.readouterr().err
