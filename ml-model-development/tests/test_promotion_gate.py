"""The gate promotes what is not worse on the same rows, and says why it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import make_contents

from common_ml_utils.base_model_trainer import ModelIdentity
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import DataError, LedgerError, RegistryError
from common_ml_utils.mlflow_utils import CHAMPION, STAGING, RegisteredBundle
from common_ml_utils.promotion.evaluation import Evaluation, classifier_evaluation
from common_ml_utils.promotion.gate import Holdout, Measured, PromotionGate, Verdict, judge
from common_ml_utils.promotion.guards import ASK, OK, REFUSE, Finding
from common_ml_utils.promotion.project_gate import run_project_gate
from common_ml_utils.release_bundle import ReleaseBundle, write_bundle
from common_ml_utils.settings import GateSettings, PlatformSettings
from common_ml_utils.test_doubles import unreachable_places

NAME = "parcel-loss-model"
GATE = GateSettings(metric="auc_roc", floor=0.6, confidence=0.9, resamples=200)


class FakeRegistry:
    """Aliases in a dictionary."""

    def __init__(self, **aliases: RegisteredBundle[ReleaseBundle]) -> None:
        self.aliases = dict(aliases)

    def load(self, model_name: str, alias: str) -> RegisteredBundle[ReleaseBundle] | None:
        assert model_name == NAME
        return self.aliases.get(alias)

    def version_of(self, model_name: str, alias: str) -> int | None:
        found = self.load(model_name, alias)
        return None if found is None else found.version

    def promote(self, model_name: str, version: int) -> None:
        if CHAMPION in self.aliases:
            self.aliases["previous"] = self.aliases[CHAMPION]
        self.aliases[CHAMPION] = self.aliases[STAGING]


def promoted(candidate: RegisteredBundle[ReleaseBundle]) -> dict[str, Any]:
    """Return the ledger's row of a promotion."""
    moved_to = {"version": candidate.version, "bundle_sha256": candidate.bundle.sha256}
    row = {"seq": 1, "model_name": NAME, "decision": "promote", "decided_at": datetime.now(UTC)}
    return {**row, "entry": {"in_production": moved_to, "reasons": ["good"]}}


class FakeLedger:
    """Entries in a list; an entry stands only if the block succeeds."""

    def __init__(
        self,
        champion: RegisteredBundle[ReleaseBundle] | None = None,
        broken: bool = False,
        full: bool = False,
    ) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.broken, self.full = broken, full
        self.history = [] if champion is None else [promoted(champion)]

    def rows(self) -> list[dict[str, Any]]:
        if self.broken:
            raise LedgerError("no ledger")
        return self.history

    @contextmanager
    def appending(self, model_name: str, decision: str, entry: dict[str, Any]) -> Iterator[str]:
        if self.full:
            raise LedgerError("no room")
        yield "hash"
        self.entries.append((decision, entry))


@pytest.fixture
def good(
    contract: PublishedContract, parcels: pd.DataFrame, tmp_path: Path
) -> RegisteredBundle[ReleaseBundle]:
    return registered(contract, parcels, tmp_path / "good", version=2)


@pytest.fixture
def poor(
    contract: PublishedContract, parcels: pd.DataFrame, tmp_path: Path
) -> RegisteredBundle[ReleaseBundle]:
    noise = parcels.assign(lost=parcels["lost"].sample(frac=1, random_state=0).to_numpy())
    return registered(contract, noise, tmp_path / "poor", version=1)


def registered(
    contract: PublishedContract, parcels: pd.DataFrame, folder: Path, version: int
) -> RegisteredBundle[ReleaseBundle]:
    write_bundle(make_contents(contract, parcels), folder)
    return RegisteredBundle(NAME, version, ReleaseBundle.load(folder))


@dataclass
class ParcelProject:
    """Scores the parcels it is given; finds what it is told to find."""

    holdouts: Callable[[RegisteredBundle[ReleaseBundle]], Holdout]
    settings: GateSettings
    unfair: str = ""
    found: tuple[Finding, ...] = ()

    def measure(
        self,
        challenger: RegisteredBundle[ReleaseBundle],
        champion: RegisteredBundle[ReleaseBundle] | None,
    ) -> Measured:
        mine = self._evaluation(challenger)
        if champion is None or self.unfair:
            return Measured(mine, unfair=self.unfair)
        return Measured(mine, (self._evaluation(champion), mine))

    def findings(
        self,
        challenger: RegisteredBundle[ReleaseBundle],
        champion: RegisteredBundle[ReleaseBundle] | None,
    ) -> tuple[Finding, ...]:
        return self.found

    def _evaluation(self, candidate: RegisteredBundle[ReleaseBundle]) -> Evaluation:
        rows = self.holdouts(candidate)
        scores = candidate.bundle.score_frame(rows.frame)
        return classifier_evaluation(rows.labels, scores, rows.groups, rows.slices, self.settings.metric)


def gate(
    registry: FakeRegistry,
    ledger: FakeLedger,
    parcels: pd.DataFrame,
    folder: Path,
    *,
    settings: GateSettings = GATE,
    unfair: str = "",
    found: tuple[Finding, ...] = (),
) -> PromotionGate:
    holdout = Holdout(parcels, parcels["lost"].to_numpy(), parcels["parcel_id"].to_numpy())
    return PromotionGate(
        model_name=NAME,
        registry=registry,
        ledger=ledger,
        settings=settings,
        project=ParcelProject(lambda candidate: holdout, settings, unfair, found),
        report=folder / "gate.json",
    )


def test_the_first_model_needs_only_the_floor(
    good: RegisteredBundle[ReleaseBundle], parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry, ledger = FakeRegistry(staging=good), FakeLedger()
    assert gate(registry, ledger, parcels, tmp_path).run().decision == "promote"
    assert registry.aliases[CHAMPION] is good
    report = json.loads((tmp_path / "gate.json").read_text())
    assert (report["verdict"], report["champion_after"], report["champion"]) == ("promote", 2, None)
    assert [decision for decision, _ in ledger.entries] == ["promote"]


def test_a_first_model_below_the_floor_is_refused(
    poor: RegisteredBundle[ReleaseBundle], parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry, ledger = FakeRegistry(staging=poor), FakeLedger()
    verdict = gate(registry, ledger, parcels, tmp_path).run()
    assert verdict.decision == "refuse"
    assert "below the floor" in verdict.reasons[0]
    assert CHAMPION not in registry.aliases
    assert [decision for decision, _ in ledger.entries] == ["refuse"]


def test_a_better_challenger_replaces_the_champion_which_becomes_previous(
    good: RegisteredBundle[ReleaseBundle],
    poor: RegisteredBundle[ReleaseBundle],
    parcels: pd.DataFrame,
    tmp_path: Path,
) -> None:
    registry = FakeRegistry(staging=good, champion=poor)
    verdict = gate(registry, FakeLedger(poor), parcels, tmp_path).run()
    assert verdict.decision == "promote"
    assert registry.aliases[CHAMPION] is good
    assert registry.aliases["previous"] is poor


def test_a_worse_challenger_is_refused_with_both_figures(
    good: RegisteredBundle[ReleaseBundle],
    poor: RegisteredBundle[ReleaseBundle],
    parcels: pd.DataFrame,
    tmp_path: Path,
) -> None:
    registry = FakeRegistry(staging=poor, champion=good)
    settings = GATE.model_copy(update={"floor": 0.0})
    verdict = gate(registry, FakeLedger(good), parcels, tmp_path, settings=settings).run()
    assert verdict.decision == "refuse"
    assert "not better" in verdict.reasons[0]
    assert registry.aliases[CHAMPION] is good
    report = json.loads((tmp_path / "gate.json").read_text())
    assert report["champion_after"] == 2
    assert report["comparison"]["difference"] < 0


def test_the_champion_itself_is_not_better(
    good: RegisteredBundle[ReleaseBundle], parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry = FakeRegistry(staging=good, champion=good)
    verdict = gate(registry, FakeLedger(good), parcels, tmp_path).run()
    assert verdict.decision == "refuse"
    assert "the challenger is the champion" in verdict.reasons[0]


def test_a_champion_that_saw_the_holdout_makes_no_fair_comparison(
    good: RegisteredBundle[ReleaseBundle],
    poor: RegisteredBundle[ReleaseBundle],
    parcels: pd.DataFrame,
    tmp_path: Path,
) -> None:
    registry = FakeRegistry(staging=good, champion=poor)
    verdict = gate(
        registry, FakeLedger(poor), parcels, tmp_path, unfair="the champion was trained on it"
    ).run()
    assert verdict.decision == "refuse"
    assert "no fair comparison" in verdict.reasons[0]


def test_without_a_challenger_it_is_an_error(
    good: RegisteredBundle[ReleaseBundle], parcels: pd.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(RegistryError, match="train one first"):
        gate(FakeRegistry(champion=good), FakeLedger(good), parcels, tmp_path).run()


def test_a_registry_that_is_down_is_named_within_seconds(tmp_path: Path) -> None:
    settings = PlatformSettings(**unreachable_places(tmp_path))
    identity = ModelIdentity(NAME, "e", "parcels", ("look", "stop"))
    project = ParcelProject(lambda candidate: pytest.fail("nothing may be measured"), GATE)
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:1 does not answer"):
        run_project_gate(settings, GATE, identity, project)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_promoted_when_the_ledger_can_not_be_written(
    good: RegisteredBundle[ReleaseBundle], parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry = FakeRegistry(staging=good)
    for ledger in (FakeLedger(broken=True), FakeLedger(full=True)):
        with pytest.raises(LedgerError):
            gate(registry, ledger, parcels, tmp_path).run()
    assert CHAMPION not in registry.aliases
    assert not (tmp_path / "gate.json").exists()


def test_candidates_with_different_rows_are_an_error(
    good: RegisteredBundle[ReleaseBundle],
    poor: RegisteredBundle[ReleaseBundle],
    parcels: pd.DataFrame,
    tmp_path: Path,
) -> None:
    def holdouts(candidate: RegisteredBundle[ReleaseBundle]) -> Holdout:
        rows = parcels if candidate is good else parcels.iloc[1:]
        return Holdout(rows, rows["lost"].to_numpy(), rows["parcel_id"].to_numpy())

    registry, ledger = FakeRegistry(staging=good, champion=poor), FakeLedger(poor)
    broken = PromotionGate(
        NAME, registry, ledger, GATE, ParcelProject(holdouts, GATE), tmp_path / "gate.json"
    )
    with pytest.raises(DataError, match="different holdout rows"):
        broken.run()
    assert registry.aliases[CHAMPION] is poor
    assert ledger.entries == []


def test_a_finding_that_asks_leaves_the_champion_and_says_why(
    good: RegisteredBundle[ReleaseBundle],
    poor: RegisteredBundle[ReleaseBundle],
    parcels: pd.DataFrame,
    tmp_path: Path,
) -> None:
    registry, ledger = FakeRegistry(staging=good, champion=poor), FakeLedger(poor)
    found = (Finding("latency", ASK, "slower"),)
    verdict = gate(registry, ledger, parcels, tmp_path, found=found).run()
    assert (verdict.decision, verdict.reasons) == ("needs approval", ["slower"])
    assert registry.aliases[CHAMPION] is poor
    assert [decision for decision, _ in ledger.entries] == ["needs approval"]
    assert json.loads((tmp_path / "gate.json").read_text())["champion_after"] == 1


def test_a_refusal_outweighs_a_question_and_every_reason_is_given() -> None:
    found = [Finding("a", ASK, "slow"), Finding("b", OK, "fine"), Finding("c", REFUSE, "stale")]
    assert judge(found) == Verdict("refuse", ["stale", "slow"])


def test_an_alias_that_moves_while_it_is_judged_stops_the_promotion(
    good: RegisteredBundle[ReleaseBundle],
    poor: RegisteredBundle[ReleaseBundle],
    parcels: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry, ledger = FakeRegistry(staging=good), FakeLedger()
    moved = gate(registry, ledger, parcels, tmp_path)
    measure = moved.project.measure

    def slow(challenger: Any, champion: Any) -> Measured:
        registry.aliases[CHAMPION] = poor
        return measure(challenger, champion)

    monkeypatch.setattr(moved.project, "measure", slow)
    with pytest.raises(RegistryError, match="champion of parcel-loss-model moved from version None to 1"):
        moved.run()
    assert registry.aliases[CHAMPION] is poor
    assert ledger.entries == []


def test_a_champion_the_ledger_does_not_know_needs_a_persons_approval(
    good: RegisteredBundle[ReleaseBundle],
    poor: RegisteredBundle[ReleaseBundle],
    parcels: pd.DataFrame,
    tmp_path: Path,
) -> None:
    registry = FakeRegistry(staging=good, champion=poor)
    verdict = gate(registry, FakeLedger(), parcels, tmp_path).run()
    assert verdict.decision == "needs approval"
    assert "version 1 is champion, but the ledger has put none into production" in verdict.reasons[0]


def test_a_bundle_that_was_rolled_back_does_not_return_by_itself(
    good: RegisteredBundle[ReleaseBundle],
    poor: RegisteredBundle[ReleaseBundle],
    parcels: pd.DataFrame,
    tmp_path: Path,
) -> None:
    ledger = FakeLedger(good)
    entry = {
        "by": "Ada",
        "reason": "declines rose",
        "rolled_back": {"version": good.version, "bundle_sha256": good.bundle.sha256},
        "in_production": {"version": poor.version, "bundle_sha256": poor.bundle.sha256},
    }
    ledger.history.append({**ledger.history[0], "seq": 2, "decision": "rollback", "entry": entry})
    verdict = gate(FakeRegistry(staging=good, champion=poor), ledger, parcels, tmp_path).run()
    assert verdict.decision == "needs approval"
    assert re.search(r"rolled back on [\d-]+ by Ada: declines rose", verdict.reasons[0])
