"""Policies and lists that change while a service runs: the good are taken over, the others change nothing."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from common_service_libs.errors import PolicyError
from common_service_libs.label_engine.lists import NO_LISTS, EntityLists
from common_service_libs.label_engine.policy import Policy
from common_service_libs.label_engine.policy_archive import policies_of
from common_service_libs.label_engine.policy_desk import PolicyDesk
from common_service_libs.metrics import ServiceMetrics

CHURN = Path(__file__).parents[1] / "services/customer_churn_api/policies/customer_churn.yaml"
GOOD = CHURN.read_text()
NEXT = GOOD.replace("version: 1", "version: 2")
BROKEN = GOOD.replace("score >= thresholds.offer", "score >= thresholds.nothing")
LIST = "list,entity,expires_at,reason,owner\ntrusted,subscriber_id:7,,r,o\n"


class Desk:
    """A desk on files in a folder, with what it told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy_file, self.lists_file = folder / "p.yaml", folder / "l.csv"
        self.metrics = ServiceMetrics()
        self.adopted: list[Policy] = []
        self.offered: list[EntityLists] = []
        self.unfit: PolicyError | None = None
        self.desk: PolicyDesk | None = None

    def start(self) -> PolicyDesk:
        if self.desk is not None:
            self.desk.close()
        self.desk = PolicyDesk(
            self.policy_file, self.lists_file, folder=self.folder / "spool", conninfo=None, poll_seconds=600,
            metrics=self.metrics,
        )  # fmt: skip
        self.desk.open(adopt=self.adopt, offer_lists=self.offered.append)
        return self.desk

    def adopt(self, policy: Policy) -> None:
        if self.unfit is not None:
            raise self.unfit
        self.adopted.append(policy)

    def count(self, name: str, outcome: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


@pytest.fixture
def desk(tmp_path: Path):
    found = Desk(tmp_path)
    found.policy_file.write_text(GOOD)
    found.lists_file.write_text(LIST)
    yield found
    if found.desk is not None:
        found.desk.close()


def test_a_changed_policy_is_taken_over_and_its_hash_is_told(desk: Desk) -> None:
    running = desk.start()
    assert running.policy.version == 1
    running.poll()
    assert desk.adopted == [], "nothing changed"
    desk.policy_file.write_text(NEXT)
    running.poll()
    assert [policy.version for policy in desk.adopted] == [2]
    assert running.policy.sha256 == hashlib.sha256(NEXT.encode()).hexdigest()
    labels = {"name": "customer_churn", "version": "2", "sha256": running.policy.sha256}
    assert desk.metrics.registry.get_sample_value("policy_info", labels) == 1.0
    assert desk.count("policy_swaps_total", "installed") == 1.0


def test_what_is_wrong_or_does_not_fit_leaves_the_old_policy_and_is_counted_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    running = desk.start()
    desk.policy_file.write_text(BROKEN)
    with caplog.at_level(logging.ERROR):
        running.poll()
        running.poll()
    assert running.policy.version == 1
    assert desk.count("policy_swaps_total", "refused") == 1.0
    [told] = [record for record in caplog.records if "refused" in record.message]
    assert "p.yaml:" in told.reason
    assert "thresholds.nothing" in told.reason
    desk.policy_file.write_text(NEXT)
    desk.unfit = PolicyError("it does not fit the bundle")
    running.poll()
    assert running.policy.version == 1
    desk.policy_file.write_text(NEXT.replace("name: customer_churn", "name: another"))
    desk.unfit = None
    running.poll()
    assert running.policy.name == "customer_churn"
    desk.policy_file.unlink()
    running.poll()
    assert desk.count("policy_swaps_total", "unreadable") == 1.0
    desk.policy_file.write_text(NEXT)
    running.poll()
    assert running.policy.version == 2, "it fits by now, and is looked at again"


def test_the_last_good_policy_survives_a_restart_with_a_broken_file(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.start()
    desk.policy_file.write_text(NEXT)
    assert desk.desk is not None
    desk.desk.poll()
    desk.policy_file.write_text(BROKEN)
    with caplog.at_level(logging.ERROR):
        again = desk.start()
    assert again.policy.version == 2
    assert "the policy file is broken, the last good policy goes on" in caplog.text
    desk.policy_file.unlink()
    assert desk.start().policy.version == 2


def test_a_policy_that_was_refused_is_refused_after_a_restart_too(desk: Desk) -> None:
    desk.start()
    desk.policy_file.write_text(NEXT)
    desk.unfit = PolicyError("it does not fit the bundle")
    assert desk.start().policy.version == 1
    desk.unfit = None
    assert desk.start().policy.version == 2


def test_a_broken_file_without_a_predecessor_stops_the_start(desk: Desk) -> None:
    desk.policy_file.write_text(BROKEN)
    with pytest.raises(PolicyError, match=r"thresholds\.nothing"):
        desk.start()


def test_another_policy_in_the_file_is_another_service(desk: Desk) -> None:
    desk.start()
    desk.policy_file.write_text(GOOD.replace("name: customer_churn", "name: other"))
    assert desk.start().policy.name == "other"


def test_a_damaged_file_of_lists_leaves_the_last_good_one_also_after_a_restart(desk: Desk) -> None:
    running = desk.start()
    on = {"subscriber_id": 7}
    assert running.lists.of(on, ("trusted",), 0.0) == {"trusted": True}
    desk.lists_file.write_text(LIST + "trusted,subscriber_id:8,then,r,o\n")
    running.poll()
    assert desk.count("list_loads_total", "refused") == 1.0
    assert running.lists.of(on, ("trusted",), 0.0) == {"trusted": True}
    again = desk.start()
    assert again.lists.of(on, ("trusted",), 0.0) == {"trusted": True}
    assert desk.count("list_loads_total", "restored") == 1.0
    desk.lists_file.write_text(LIST.replace("trusted", "blocked"))
    again.poll()
    assert desk.offered[-1].of(on, ("trusted", "blocked"), 0.0) == {"trusted": False, "blocked": True}
    entries = desk.metrics.registry.get_sample_value
    assert (entries("list_entries", {"list": "blocked"}), entries("list_entries", {"list": "trusted"})) == (
        1.0,
        None,
    )


def test_without_a_file_of_lists_every_list_is_empty(desk: Desk) -> None:
    desk.lists_file.unlink()
    assert desk.start().lists is NO_LISTS


def test_every_policy_that_was_in_service_is_found_by_its_hash(desk: Desk) -> None:
    first = desk.start().policy
    desk.policy_file.write_text(NEXT)
    assert desk.desk is not None
    desk.desk.poll()
    second = desk.desk.policy
    wanted = {first.sha256, second.sha256, "0" * 64}
    found = policies_of(wanted, conninfo=None, folders=[desk.folder / "spool" / "policies"], files=[])
    assert {sha256: policy.version for sha256, policy in found.items()} == {first.sha256: 1, second.sha256: 2}
