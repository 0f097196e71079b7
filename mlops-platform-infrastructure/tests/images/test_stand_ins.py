"""When an image is pulled, made here or left out; the engine is a fake."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
from types import ModuleType

import pytest

from local_engine.engine import EngineError
from local_engine.stand_ins import build

PINS = "POSTGRES_IMAGE=postgres:18\nGRAFANA_IMAGE=grafana/grafana:12\nREDIS_IMAGE=redis:8\n"


class FakeEngine:
    """Answers the commands of the engine's client; `there` holds images and their stand-in's label."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
        self.there: dict[str, str] = {}
        self.pullable: set[str] = set()
        self.registry = False
        self.asked_registry = 0
        self.built: list[str] = []
        versions = tmp_path / "versions.env"
        versions.write_text(PINS)
        monkeypatch.setattr(build, "VERSIONS", versions)
        monkeypatch.setattr(build, "docker", self._docker)
        monkeypatch.setattr(build, "_registry_answers", self._registry_answers)
        monkeypatch.setattr(build.base_images, "ensure", lambda host: "there")

    def _registry_answers(self, host: str, name: str) -> bool:
        self.asked_registry += 1
        return self.registry

    def _docker(self, host: str, *words: str, seconds: float | None = None):
        if words[0] == "image":
            there = words[-1] in self.there
            return subprocess.CompletedProcess(words, 0 if there else 1, self.there.get(words[-1], ""), "")
        if words[0] == "pull":
            found = words[-1] in self.pullable
            return subprocess.CompletedProcess(words, 0 if found else 1, "", "manifest unknown")
        self.built.append(words[words.index("--tag") + 1])
        return subprocess.CompletedProcess(words, 0, "", "")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path) -> FakeEngine:
    return FakeEngine(monkeypatch, tmp_path)


def states(**wanted) -> dict[str, str]:
    return {outcome.name: outcome.state for outcome in build.ensure("unix:///fake", **wanted)}


def test_without_a_registry_stand_ins_are_made_and_what_has_none_is_missing(engine: FakeEngine):
    assert states() == {"postgres:18": "stand-in", "grafana/grafana:12": "missing", "redis:8": "stand-in"}
    assert engine.asked_registry == 1
    assert engine.built == [build.WHEELS, build.BASE, "postgres:18", "redis:8"]


def test_with_a_registry_everything_is_pulled(engine: FakeEngine):
    engine.registry = True
    engine.pullable = {"postgres:18", "grafana/grafana:12", "redis:8"}
    assert set(states().values()) == {"pulled"}
    assert engine.built == []


def test_with_a_registry_a_wrong_pin_is_an_error_and_no_stand_in(engine: FakeEngine):
    engine.registry = True
    engine.pullable = {"postgres:18"}
    with pytest.raises(EngineError, match="grafana/grafana:12 can't be pulled: manifest unknown"):
        states()
    assert engine.built == []


def test_a_real_image_is_left_alone_and_a_stand_in_follows_its_folder(engine: FakeEngine):
    engine.there = {"postgres:18": "", "redis:8": "redis"}
    found = states(wanted=["POSTGRES_IMAGE", "REDIS_IMAGE"])
    assert found == {"postgres:18": "there", "redis:8": "stand-in"}
    assert "postgres:18" not in engine.built


def test_an_unknown_setting_is_named(engine: FakeEngine):
    with pytest.raises(EngineError, match="NGINX_IMAGE"):
        states(wanted=["NGINX_IMAGE"])


def test_the_stand_ins_are_those_of_pinned_images_and_have_a_folder():
    pinned = build.pins(build.VERSIONS.read_text())
    assert set(build.STAND_INS) <= set(pinned)
    for folder in build.STAND_INS.values():
        assert (build.HERE / folder / "Dockerfile").is_file()


def test_the_wheels_are_cut_from_the_lock_with_their_hashes():
    text = build.lock_excerpt(build.LOCK.read_text(), build.WHEEL_NAMES)
    assert [line.split("==")[0] for line in text.splitlines() if line[0] != " "] == list(build.WHEEL_NAMES)
    assert text.count("--hash=sha256:") >= len(build.WHEEL_NAMES)


def test_a_package_that_is_not_locked_is_an_error():
    with pytest.raises(EngineError, match="left-pad"):
        build.lock_excerpt(build.LOCK.read_text(), ["left-pad"])


@pytest.fixture(scope="module")
def broker() -> ModuleType:
    """The stand-in broker's start script."""
    loader = importlib.machinery.SourceFileLoader("broker_run", str(build.HERE / "kafka" / "run"))
    spec = importlib.util.spec_from_loader("broker_run", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("PLAINTEXT://:9092", ":9092"),
        ("PLAINTEXT://0.0.0.0:9092,CONTROLLER://127.0.0.1:9093", "0.0.0.0:9092"),
        ("CONTROLLER://:9093, PLAINTEXT://server1:9092", "server1:9092"),
    ],
)
def test_the_broker_listens_where_kafka_would(broker: ModuleType, text: str, address: str):
    assert broker.listener("KAFKA_LISTENERS", text) == address


def test_the_broker_refuses_listeners_that_it_does_not_have(broker: ModuleType):
    with pytest.raises(SystemExit, match="KAFKA_LISTENERS names 2"):
        broker.listener("KAFKA_LISTENERS", "INTERNAL://:29092,EXTERNAL://:9092")
