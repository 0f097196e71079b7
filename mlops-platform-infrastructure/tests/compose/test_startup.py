"""What `up` decides before and while services start."""

from __future__ import annotations

import doctest

import pytest

from server_tools import server_settings, stacks, startup
from server_tools.stacks import read_arguments
from server_tools.startup import (
    State,
    UnknownServiceError,
    check_names,
    choose,
    images,
    is_job,
    read_elsewhere,
)

MODEL = {
    "elasticsearch": {"image": "e:1", "restart": "unless-stopped"},
    "accounts": {
        "image": "e:1", "restart": "on-failure:5",
        "depends_on": {"elasticsearch": {"condition": "service_healthy", "required": True}},
    },
    "kibana": {"image": "k:1", "depends_on": {"accounts": {"required": True}}},
    "prometheus": {"image": "p:1", "depends_on": {"kibana": {"required": False}}},
}  # fmt: skip


def test_what_needs_a_service_that_is_left_out_is_left_out_and_named() -> None:
    choice = choose(MODEL, ["elasticsearch"])
    assert choice.started == ("prometheus",)
    assert choice.left_out == {
        "elasticsearch": "asked for",
        "accounts": "needs elasticsearch",
        "kibana": "needs accounts",
    }


def test_a_job_that_only_left_out_services_need_is_left_out_too() -> None:
    needs_volume = {"depends_on": {"volume": {"required": True}}, "restart": "unless-stopped"}
    services = {"volume": {"restart": "no"}, "grafana": needs_volume, "other": needs_volume}
    assert choose(services, ["grafana"]).started == ("volume", "other")
    choice = choose(services, ["grafana", "other"])
    assert choice.started == ()
    assert choice.left_out["volume"] == "only grafana, other needs it"
    lone = {"volume": {"restart": "no"}, "grafana": {"restart": "unless-stopped"}}
    assert choose(lone, ["grafana"]).started == ("volume",)


def test_the_logs_of_one_machine_are_read_once_and_of_three_on_each() -> None:
    services = {
        "filebeat-volumes": {"restart": "no"},
        "filebeat": {"depends_on": {"filebeat-volumes": {"required": True}}, "restart": "unless-stopped"},
        "redis": {"restart": "unless-stopped"},
    }
    one = {f"SERVER{number}_HOST": "172.17.0.1" for number in "123"}
    three = {f"SERVER{number}_HOST": f"10.0.0.{number}" for number in "123"}
    choice = choose(services, [], read_elsewhere("1", one))
    assert choice.started == ("redis",)
    assert choice.left_out["filebeat"] == "server 3's reads the logs of this machine"
    assert choose(services, [], read_elsewhere("3", one)).left_out == {}
    for server in "123":
        assert choose(services, [], read_elsewhere(server, three)).left_out == {}
    assert choose({"redis": {}}, [], read_elsewhere("2", one)).left_out == {}


def test_nothing_is_left_out_unasked() -> None:
    choice = choose(MODEL, [])
    assert (choice.started, choice.left_out) == (tuple(MODEL), {})


def test_a_misspelt_name_is_an_error() -> None:
    with pytest.raises(UnknownServiceError, match="graphana"):
        check_names(["graphana"], MODEL)


def test_images_are_asked_for_once_with_their_services() -> None:
    assert images(MODEL, ["elasticsearch", "accounts", "kibana"]) == {
        "e:1": ["elasticsearch", "accounts"],
        "k:1": ["kibana"],
    }


@pytest.mark.parametrize(
    ("state", "job", "ready", "failed"),
    [
        (State("running", "healthy"), False, True, False),
        (State("running", "starting"), False, False, False),
        (State("running", "unhealthy"), False, False, False),
        (State("running"), False, True, False),
        (State("restarting"), False, False, False),
        (State("dead"), False, False, True),
        (State("exited", exit_code=0), True, True, False),
        (State("exited", exit_code=1), True, False, True),
        (State("restarting", exit_code=1), True, False, False),
        (State("running"), True, False, False),
        (State("created"), True, False, False),
    ],
)
def test_a_service_is_ready_when_healthy_and_a_job_when_it_ended_well(
    state: State, job: bool, ready: bool, failed: bool
) -> None:
    assert (state.ready(job), state.failed(job)) == (ready, failed)


def test_jobs_are_known_by_their_restart_policy() -> None:
    assert [name for name, service in MODEL.items() if is_job(service)] == [
        "accounts",
        "kibana",
        "prometheus",
    ]


def test_settings_are_parsed_and_a_template_must_be_filled() -> None:
    assert server_settings.parse("A=1\n# B=2\n\nC=a b\n") == {"A": "1", "C": "a b"}
    with pytest.raises(server_settings.SettingsError, match="line 1"):
        server_settings.parse("export A=1")
    with pytest.raises(server_settings.SettingsError, match="@name@"):
        server_settings.fill("A=@name@", {})


def test_services_follow_the_server_and_the_environment_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WITHOUT", "grafana kibana")
    options = read_arguments(["logs", "--server", "2", "redis", "mlflow-server"])
    assert (options.verb, options.server, options.service) == ("logs", "2", ["redis", "mlflow-server"])
    assert read_arguments(["up", "--without", "loki"]).without == ["loki", "grafana", "kibana"]


def test_a_missing_engine_is_named_before_any_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(stacks.UpError, match=r"no Docker Engine answers|Docker is not installed"):
        stacks.require_engine()


def test_the_examples_hold() -> None:
    assert doctest.testmod(startup).failed == 0
