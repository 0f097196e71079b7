"""The controls over every stack: no finding, and each control is missed when it is gone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from server_tools import places, policy
from server_tools.controls import CONTROLS

WAIVERS = policy.read_waivers((places.SETUPS / policy.WAIVERS).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models() -> dict[str, policy.Model]:
    return policy.load(places.SETUPS)


def test_every_stack_and_server_keeps_every_control(models: dict[str, policy.Model]) -> None:
    verdict = policy.judge(models, WAIVERS)
    assert [str(finding) for finding in verdict.findings + policy.unused(WAIVERS, verdict.used)] == []
    assert {"server1.yml", "server2.yml", "server3.yml"} < set(models)


def test_a_control_taken_from_any_service_is_noticed(models: dict[str, policy.Model]) -> None:
    missed, controls, count = [], set(), 0
    for what, mutated in policy.model_mutations(models, WAIVERS):
        count += 1
        controls.add(what.rpartition(" ")[2])
        if not policy.judge({"copy": mutated}, WAIVERS).findings:
            missed.append(what)
    assert missed == []
    assert count > 1000
    # Every control takes part; the networks' is taken from the networks themselves.
    assert {control.name for control in CONTROLS} - controls == {"internal-networks"}


@pytest.mark.parametrize("part", range(2))
def test_a_line_taken_from_a_file_is_noticed(part: int) -> None:
    """A sample that reaches every kind of line; `policy --mutate` tries all of them."""
    count, missed = policy.try_file_mutations(WAIVERS, every=61, first=part * 30)
    assert missed == []
    assert count >= 5


def test_a_waiver_that_excuses_nothing_is_a_finding(models: dict[str, policy.Model]) -> None:
    idle = policy.Waiver("no-root", ("redis",), "a reason of at least five words")
    verdict = policy.judge(models, [*WAIVERS, idle])
    assert [(found.service, found.control) for found in policy.unused([idle], verdict.used)] == [
        ("redis", "no-root")
    ]


@pytest.mark.parametrize(
    "text",
    [
        "- {control: no-root, services: [redis]}",
        "- {control: no-root, services: [redis], reason: because}",
        "- {control: made-up, services: [redis], reason: there is no control of this name}",
    ],
)
def test_a_waiver_without_a_reason_or_a_control_is_refused(text: str) -> None:
    with pytest.raises(policy.PolicyError):
        policy.read_waivers(text)


def test_a_waiver_excuses_its_services_alone(models: dict[str, policy.Model]) -> None:
    model = copy.deepcopy(models["server2.yml"])
    model["services"]["redis"]["user"] = "0:0"
    assert [found.service for found in policy.judge({"copy": model}, WAIVERS).findings] == ["redis"]


def test_a_file_that_compose_refuses_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "docker-compose.yml"
    path.write_text("services:\n  a:\n    image: ${POSTGRES_IMAGE}\n    depends_on: [b]\n")
    with pytest.raises(policy.PolicyError, match="undefined service"):
        policy.resolve(path, policy.sample_environment())
