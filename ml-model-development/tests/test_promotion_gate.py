"""The gate promotes only what is better on the same rows, and says why it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import make_contents

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import LedgerError, RegistryError
from common_ml_utils.evaluation_utils import PairedComparison
from common_ml_utils.mlflow_utils import CHAMPION, STAGING, RegisteredBundle
from common_ml_utils.promotion_gate import Evidence, Holdout, PromotionGate, judge
from common_ml_utils.release_bundle import ReleaseBundle, write_bundle
from common_ml_utils.settings import GateSettings

NAME = "parcel-loss-model"
GATE = GateSettings(metric="auc_roc", floor=0.6, confidence=0.9, resamples=200)


class FakeRegistry:
    """Aliases in a dictionary."""

    def __init__(self, **aliases: RegisteredBundle) -> None:
        self.aliases = dict(aliases)

    def load(self, model_name: str, alias: str) -> RegisteredBundle | None:
        assert model_name == NAME
        return self.aliases.get(alias)

    def promote(self, model_name: str, version: int) -> None:
        if CHAMPION in self.aliases:
            self.aliases["previous"] = self.aliases[CHAMPION]
        self.aliases[CHAMPION] = self.aliases[STAGING]


class FakeLedger:
    """Entries in a list; an entry stands only if the block succeeds."""

    def __init__(self, broken: bool = False) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.broken = broken

    @contextmanager
    def appending(self, model_name: str, decision: str, entry: dict[str, Any]) -> Iterator[str]:
        if self.broken:
            raise LedgerError("no ledger")
        yield "hash"
        self.entries.append((decision, entry))


@pytest.fixture
def good(contract: PublishedContract, parcels: pd.DataFrame, tmp_path: Path) -> RegisteredBundle:
    return registered(contract, parcels, tmp_path / "good", version=2)


@pytest.fixture
def poor(contract: PublishedContract, parcels: pd.DataFrame, tmp_path: Path) -> RegisteredBundle:
    noise = parcels.assign(lost=parcels["lost"].sample(frac=1, random_state=0).to_numpy())
    return registered(contract, noise, tmp_path / "poor", version=1)


def registered(
    contract: PublishedContract, parcels: pd.DataFrame, folder: Path, version: int
) -> RegisteredBundle:
    write_bundle(make_contents(contract, parcels), folder)
    return RegisteredBundle(NAME, version, ReleaseBundle.load(folder))


def gate(
    registry: FakeRegistry,
    ledger: FakeLedger,
    parcels: pd.DataFrame,
    folder: Path,
    *,
    settings: GateSettings = GATE,
    saw_holdout: bool = False,
) -> PromotionGate:
    holdout = Holdout(parcels, parcels["lost"].to_numpy(), parcels["parcel_id"].to_numpy())
    return PromotionGate(
        model_name=NAME,
        registry=registry,
        ledger=ledger,
        settings=settings,
        holdout_for=lambda bundle, challenger: holdout,
        saw_holdout=lambda champion, challenger: saw_holdout,
        report=folder / "gate.json",
    )


def test_the_first_model_needs_only_the_floor(
    good: RegisteredBundle, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry, ledger = FakeRegistry(staging=good), FakeLedger()
    assert gate(registry, ledger, parcels, tmp_path).run().decision == "promote"
    assert registry.aliases[CHAMPION] is good
    report = json.loads((tmp_path / "gate.json").read_text())
    assert (report["verdict"], report["champion_after"], report["champion"]) == ("promote", 2, None)
    assert [decision for decision, _ in ledger.entries] == ["promote"]


def test_a_first_model_below_the_floor_is_refused(
    poor: RegisteredBundle, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry, ledger = FakeRegistry(staging=poor), FakeLedger()
    verdict = gate(registry, ledger, parcels, tmp_path).run()
    assert verdict.decision == "refuse"
    assert "below the floor" in verdict.reasons[0]
    assert CHAMPION not in registry.aliases
    assert [decision for decision, _ in ledger.entries] == ["refuse"]


def test_a_better_challenger_replaces_the_champion_which_becomes_previous(
    good: RegisteredBundle, poor: RegisteredBundle, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry = FakeRegistry(staging=good, champion=poor)
    verdict = gate(registry, FakeLedger(), parcels, tmp_path).run()
    assert verdict.decision == "promote"
    assert registry.aliases[CHAMPION] is good
    assert registry.aliases["previous"] is poor


def test_a_worse_challenger_is_refused_with_both_figures(
    good: RegisteredBundle, poor: RegisteredBundle, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry = FakeRegistry(staging=poor, champion=good)
    settings = GATE.model_copy(update={"floor": 0.0})
    verdict = gate(registry, FakeLedger(), parcels, tmp_path, settings=settings).run()
    assert verdict.decision == "refuse"
    assert "not better" in verdict.reasons[0]
    assert registry.aliases[CHAMPION] is good
    report = json.loads((tmp_path / "gate.json").read_text())
    assert report["champion_after"] == 2
    assert report["comparison"]["difference"] < 0


def test_the_champion_itself_is_not_better(
    good: RegisteredBundle, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry = FakeRegistry(staging=good, champion=good)
    verdict = gate(registry, FakeLedger(), parcels, tmp_path).run()
    assert verdict.decision == "refuse"
    assert "the challenger is the champion" in verdict.reasons[0]


def test_a_champion_that_saw_the_holdout_makes_no_fair_comparison(
    good: RegisteredBundle, poor: RegisteredBundle, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry = FakeRegistry(staging=good, champion=poor)
    verdict = gate(registry, FakeLedger(), parcels, tmp_path, saw_holdout=True).run()
    assert verdict.decision == "refuse"
    assert "no fair comparison" in verdict.reasons[0]


def test_without_a_challenger_it_is_an_error(
    good: RegisteredBundle, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(RegistryError, match="train one first"):
        gate(FakeRegistry(champion=good), FakeLedger(), parcels, tmp_path).run()


def test_nothing_is_promoted_when_the_ledger_can_not_be_written(
    good: RegisteredBundle, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    registry = FakeRegistry(staging=good)
    with pytest.raises(LedgerError):
        gate(registry, FakeLedger(broken=True), parcels, tmp_path).run()
    assert CHAMPION not in registry.aliases
    assert not (tmp_path / "gate.json").exists()


def comparison(difference: float, probability: float) -> PairedComparison:
    return PairedComparison(
        0.8, 0.8 + difference, difference, difference - 0.01, difference + 0.01, probability, 1000
    )


def evidence(difference: float, probability: float, calibration: float = 0.01) -> Evidence:
    metrics = {"auc_roc": 0.8 + difference, "calibration_error": calibration}
    return Evidence(metrics, {"auc_roc": 0.8, "calibration_error": 0.01}, comparison(difference, probability))


@pytest.mark.parametrize(
    ("case", "decision"),
    [
        (evidence(0.01, 0.95), "promote"),
        (evidence(0.01, 0.90), "promote"),
        (evidence(0.01, 0.89), "refuse"),
        (evidence(-0.01, 0.95), "refuse"),
        (evidence(0.01, 0.99, calibration=0.03), "refuse"),
        (evidence(0.01, 0.99, calibration=0.019), "promote"),
    ],
)
def test_confidence_and_calibration_both_guard_a_promotion(case: Evidence, decision: str) -> None:
    assert judge(case, GATE).decision == decision


def test_every_reason_against_is_given() -> None:
    worst = evidence(-0.3, 0.0, calibration=0.2)
    assert len(judge(worst, GATE).reasons) == 3


def test_candidates_with_different_rows_are_an_error(
    good: RegisteredBundle, poor: RegisteredBundle, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    other = RegisteredBundle(NAME, 1, poor.bundle)
    other.bundle.contract = PublishedContract(
        text=other.bundle.contract.text + " ", service=other.bundle.contract.service
    )
    labels = parcels["lost"].to_numpy()

    def holdout_for(bundle: RegisteredBundle, challenger: RegisteredBundle) -> Holdout:
        mine = labels if bundle is challenger else np.flip(labels)
        return Holdout(parcels, mine, parcels["parcel_id"].to_numpy())

    registry = FakeRegistry(staging=good, champion=other)
    broken = PromotionGate(
        NAME, registry, FakeLedger(), GATE, holdout_for, lambda a, b: False, tmp_path / "gate.json"
    )
    with pytest.raises(RegistryError, match="different holdout rows"):
        broken.run()
