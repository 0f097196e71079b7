"""The drill itself, small, on a Docker Engine: nothing acknowledged is lost, damage is found."""

import pytest

from server_tools.backup import drill
from server_tools.backup.drill_containers import docker

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def report():
    if docker("image", "inspect", "mlops/backup:dev", check=False).returncode:
        pytest.skip("there is no image mlops/backup:dev: make images")
    return drill.run("small", "mlops/backup:dev")


def value(report, name: str) -> float:
    return next(each["value"] for each in report["results"] if each["name"] == name)


def test_every_target_is_met(report):
    assert [each for each in report["results"] if each["met"] is False] == []
    assert sum(each["met"] is True for each in report["results"]) == 7


def test_writers_wrote_while_it_was_backed_up(report):
    assert value(report, "acknowledged rows written") > 200
    assert value(report, "acknowledged Redis writes") > 200
    assert report["compared"] == {"tables": 4, "keys": 3000, "objects": 12}


def test_each_kind_of_damage_was_refused(report):
    assert report["damage"] == {
        "cut WAL file": True, "changed Redis command": True, "changed pack of the repository": True,
    }  # fmt: skip
