"""What `server_tools images` asks the engine for, and what it reports."""

from __future__ import annotations

import doctest
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from local_engine.stand_ins import build as stand_ins
from server_tools import images
from server_tools.images import (
    LIMITS,
    OURS,
    BuildError,
    Built,
    Image,
    build_command,
    chosen,
    report,
    write_report,
)

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
REPOSITORY = Path("/repository")


def words_of(name: str, **pins: str) -> list[str]:
    (image,) = [image for image in OURS if image.name == name]
    return build_command(image, "1.2", "c0ffee", REPOSITORY, pins)


def test_an_image_is_labelled_with_its_commit_and_version():
    words = words_of("feast-cli")
    assert words[-1] == "/repository/feature-store-management"
    assert words[words.index("--tag") + 1] == "mlops/feast-cli:1.2"
    assert "org.opencontainers.image.revision=c0ffee" in words
    assert "org.opencontainers.image.version=1.2" in words


def test_a_service_stands_on_the_base_of_its_own_version():
    assert "BASE_IMAGE=mlops/decision-service-base:1.2" in words_of("fraud-detection-api")


def test_a_training_image_is_told_its_commit():
    assert "GIT_COMMIT=c0ffee" in words_of("churn-training")


def test_what_stands_on_anothers_image_takes_the_pinned_one():
    assert "POSTGRES_IMAGE=postgres:18" in words_of("backup", POSTGRES_IMAGE="postgres:18")


def test_a_base_is_built_before_what_stands_on_it():
    names = [image.name for image in chosen([])]
    for image in OURS:
        if image.base:
            assert names.index(image.base) < names.index(image.name)


def test_an_unknown_name_is_refused():
    with pytest.raises(BuildError, match="no-such"):
        chosen(["feast-cli", "no-such"])


def test_every_image_has_a_most():
    assert set(json.loads(LIMITS.read_text())) == {image.name for image in OURS}


def test_the_report_names_size_target_and_seconds():
    document = report([Built("feast-cli", 1_500_000_000, 61.23)], {"feast-cli": 1200}, "images build", NOON)
    assert document["date"] == "2026-11-20T12:00:00+00:00"
    assert document["results"] == [
        {"name": "feast-cli size", "value": 1500.0, "unit": "MB", "target": 1200, "met": False},
        {"name": "feast-cli build", "value": 61.2, "unit": "s"},
    ]


def test_a_later_build_of_one_image_keeps_the_others_lines(tmp_path: Path):
    path = tmp_path / "reports" / "images.json"
    limits = {"a": 10, "b": 10}
    write_report(report([Built("a", 1_000_000, 1), Built("b", 2_000_000, 2)], limits, "x", NOON), path)
    write_report(report([Built("b", 3_000_000, 3)], limits, "y", NOON), path)
    values = {line["name"]: line["value"] for line in json.loads(path.read_text())["results"]}
    assert values == {"a size": 1.0, "a build": 1, "b size": 3.0, "b build": 3}


def test_a_failed_build_shows_the_builders_last_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'Step 3: no such package'\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(BuildError, match="no such package"):
        list(images.build("unix:///fake", [Image("a", "context", "Dockerfile")], "dev", "c0ffee"))


def test_an_image_whose_base_can_not_be_had_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(images, "inspected", lambda host, name: None)
    image = Image("jenkins", "context", "Dockerfile", stands_on="JENKINS_IMAGE")
    assert list(images.build("unix:///fake", [image], "dev", "c0ffee")) == []
    assert "left out: jenkins/jenkins:" in capsys.readouterr().out


@pytest.mark.parametrize("module", [images, stand_ins], ids=["images", "stand_ins"])
def test_examples_are_true(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
