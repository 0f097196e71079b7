"""Deploying and going back: what is pinned, recorded and started; images' names; publishing; telling."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from server_tools import deploy, images, notify, publish, releases
from server_tools.deployments import Deployments, NothingToRollBackError, image_of, overrides, pinned, uses
from server_tools.releases import SOURCES, ReleaseError

SERVICES = {
    "fraud-api": {"image": "mlops/fraud-detection-api:dev", "environment": {"X": "1"}},
    "fraud-volumes": {"image": "mlops/fraud-detection-api:dev"},
    "churn-api": {"image": "mlops/customer-churn-api:dev"},
    "starter": {
        "image": "mlops/airflow-worker:dev",
        "environment": {"IMAGE": "mlops/fraud-training:dev", "N": None},
    },
    "kafka": {"image": "apache/kafka:4.1.1", "environment": None},
}
FRAUD, CHURN = "fraud-detection-api", "customer-churn-api"


def state(folder: Path) -> Deployments:
    return Deployments(folder, "server3")


def test_a_deployment_keeps_what_was_there_and_goes_back_to_it(tmp_path):
    first = state(tmp_path)
    first.deploy("build-1", {FRAUD: "mlops/fraud-detection-api:a"}, "r1", "somebody")
    first.save(SERVICES)
    second = state(tmp_path)
    second.deploy(
        "build-2", {FRAUD: "mlops/fraud-detection-api:b", CHURN: "mlops/customer-churn-api:b"}, "r2"
    )
    second.save(SERVICES)
    third = state(tmp_path)
    assert third.history[0]["approved_by"] == "somebody"
    assert third.history[1]["images"] == {
        FRAUD: {"from": "mlops/fraud-detection-api:a", "to": "mlops/fraud-detection-api:b"},
        CHURN: {"from": None, "to": "mlops/customer-churn-api:b"},
    }
    third.roll_back("build-2")
    third.save(SERVICES)
    back = state(tmp_path)
    assert (back.pins, back.release) == ({FRAUD: "mlops/fraud-detection-api:a"}, "r1")
    assert [entry["state"] for entry in back.history] == ["deployed", "rolled back"]
    written = json.loads(overrides(tmp_path, "server3").read_text())
    assert written == {
        "services": {
            "fraud-api": {"image": "mlops/fraud-detection-api:a"},
            "fraud-volumes": {"image": "mlops/fraud-detection-api:a"},
        }
    }
    assert (tmp_path / "deployments.server3.json").stat().st_mode & 0o077 == 0


def test_a_build_undoes_only_its_own_newest_deployment(tmp_path):
    known = state(tmp_path)
    with pytest.raises(NothingToRollBackError):
        known.roll_back(None)
    known.deploy("build-1", {FRAUD: "f:1"}, "r")
    known.deploy("build-2", {FRAUD: "f:2"}, "r")
    with pytest.raises(NothingToRollBackError, match="build-1"):
        known.roll_back("build-1")
    known.roll_back("build-2")
    with pytest.raises(NothingToRollBackError):
        known.roll_back("build-2")
    known.roll_back(None)
    assert known.pins == {}


def test_what_an_image_changes_is_found_in_images_and_settings():
    assert uses(SERVICES, FRAUD) == ["fraud-api", "fraud-volumes"]
    assert uses(SERVICES, "fraud-training") == ["starter"]
    assert uses(SERVICES, "kafka") == []
    assert pinned(SERVICES, {"fraud-training": "r:5000/mlops/fraud-training:x"}) == {
        "starter": {"environment": {"IMAGE": "r:5000/mlops/fraud-training:x"}}
    }


@pytest.mark.parametrize("text", ["mlops/", "x mlops/a b", "/var/lib/mlops/local/x", 7, None, "http://mlops"])
def test_what_is_no_image_of_ours_is_left_alone(text):
    assert image_of(text) is None


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with the sources of two images, and this process in it."""
    folder = tmp_path / "repository"
    for image in ("spark", "reporting"):
        path = folder / SOURCES[image][0] / "code.py"
        path.parent.mkdir(parents=True)
        path.write_text("1\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "all")
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    ran = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return ran.stdout.strip()


def commit(folder: Path, message: str) -> str:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", message)
    return git(folder, "rev-parse", "HEAD")


def test_the_tag_is_the_last_commit_that_changed_the_image(repository):
    before = releases.tag("spark", repository)
    (repository / SOURCES["reporting"][0] / "code.py").write_text("2\n")
    assert releases.tag("reporting", repository) == f"{before}-dirty"
    changed = commit(repository, "report")
    assert releases.tag("spark", repository) == before
    assert releases.tag("reporting", repository) == changed[:12]


def test_an_image_without_a_commit_is_refused(repository):
    with pytest.raises(ReleaseError, match="backup"):
        releases.tag("backup", repository)


@pytest.mark.parametrize("registry", ["https://r", "user@r", "r/", "r:x", "R;rm", "r r"])
def test_a_registry_is_host_port_and_path(registry):
    with pytest.raises(ReleaseError):
        releases.reference("spark", "a", registry)


def test_an_unknown_image_is_refused():
    with pytest.raises(ReleaseError, match="no-such"):
        releases.chosen("spark,no-such")


def test_sources_name_what_is_there_and_every_image_that_is_built():
    for image, sources in SOURCES.items():
        for source in sources[:1]:
            assert (releases.places.REPOSITORY / source).exists(), f"{image}: {source}"
    built = {image.name: image for image in images.OURS if image.name != images.SERVICE_BASE}
    assert set(SOURCES) == set(built)
    for name, image in built.items():
        dockerfile = f"{image.context}/{image.dockerfile}"
        assert any(dockerfile.startswith(f"{source}/") for source in SOURCES[name]), f"{name}: {dockerfile}"


class Stack:
    """Stands where Compose stands: remembers what was started, with the images that were pinned then."""

    started: list[tuple[str, str, dict[str, object]]]
    fails = False

    def __init__(self, folder: Path, commit: str) -> None:
        self.folder, self.commit = folder, commit

    def services(self, _server: str) -> dict[str, object]:
        return SERVICES

    def up(self, server: str) -> None:
        written = json.loads(overrides(self.folder, server).read_text())["services"]
        Stack.started.append((server, self.commit, {name: part["image"] for name, part in written.items()}))
        if Stack.fails:
            raise ReleaseError("up failed")


@pytest.fixture
def stack(monkeypatch, tmp_path):
    Stack.started, Stack.fails = [], False
    monkeypatch.setattr(deploy, "Compose", Stack)
    monkeypatch.setattr(deploy, "must_exist", lambda images, registry: None)
    monkeypatch.setattr(deploy, "settings", lambda: {"MLOPS_VERSION": "dev"})
    versions = {"now": "a"}
    monkeypatch.setattr(
        deploy,
        "references",
        lambda names, registry: {name: f"mlops/{name}:{versions['now']}" for name in names},
    )
    commits = iter([f"{digit}" * 40 for digit in "123456789"])
    monkeypatch.setattr(deploy, "git", lambda *arguments: next(commits))
    monkeypatch.setenv("MLOPS_SERVERS_DIR", str(tmp_path))
    monkeypatch.setenv("BUILD_TAG", "jenkins-1")
    return versions


def call(*arguments: str) -> int:
    return deploy.main(list(arguments))


def test_deploying_twice_does_nothing_the_second_time(stack, capsys):
    assert call("deploy", "--server", "server3", "--images", FRAUD) == 0
    assert call("deploy", "--server", "server3", "--images", FRAUD) == 0
    assert "nothing to deploy" in capsys.readouterr().out
    assert Stack.started == [
        ("server3", "1" * 40, dict.fromkeys(("fraud-api", "fraud-volumes"), f"mlops/{FRAUD}:a"))
    ]


def test_an_image_alone_leaves_the_compose_files_as_they_were_deployed(stack):
    call("deploy", "--server", "server3", "--images", FRAUD)
    stack["now"] = "b"
    call("deploy", "--server", "server3", "--images", FRAUD)
    call("deploy", "--server", "server3", "--images", FRAUD, "--with-stacks")
    assert [commit[:1] for _, commit, _ in Stack.started] == ["1", "1", "3"]


def test_rolling_back_starts_what_ran_before(stack, tmp_path, monkeypatch, capsys):
    call("deploy", "--server", "server3", "--images", f"{FRAUD},{CHURN}")
    stack["now"] = "b"
    monkeypatch.setenv("BUILD_TAG", "jenkins-2")
    call("deploy", "--server", "server3", "--images", FRAUD)
    assert Stack.started[-1][2]["fraud-api"] == f"mlops/{FRAUD}:b"
    assert call("rollback", "--server", "server3") == 0
    assert Stack.started[-1][2] == Stack.started[0][2]
    # Once more, by the same build: nothing of it is left.
    assert call("rollback", "--server", "server3") == 0
    assert "no deployment of jenkins-2" in capsys.readouterr().out
    assert len(Stack.started) == 3


def test_a_deployment_that_fails_to_start_can_be_rolled_back(stack):
    call("deploy", "--server", "server3", "--images", FRAUD)
    stack["now"] = "b"
    Stack.fails = True
    assert call("deploy", "--server", "server3", "--images", FRAUD) == 1
    Stack.fails = False
    assert call("rollback", "--server", "server3") == 0
    assert Stack.started[-1][2]["fraud-api"] == f"mlops/{FRAUD}:a"


def test_an_image_that_only_tasks_run_in_gets_its_name_and_loses_it_again(stack, monkeypatch):
    named: dict[str, str | None] = {"churn-training": "sha256:old"}
    monkeypatch.setattr(deploy.Tasks, "meaning", lambda self, image: named.get(image))
    monkeypatch.setattr(deploy.Tasks, "give", lambda self, image, target: named.update({image: target}))
    call("deploy", "--server", "server2", "--images", "churn-training")
    assert named == {"churn-training": "mlops/churn-training:a"}
    call("rollback", "--server", "server2")
    assert named == {"churn-training": "sha256:old"}


def test_an_image_that_a_server_does_not_use_is_not_deployed_there(stack, capsys):
    assert call("deploy", "--server", "server1", "--images", "spark") == 0
    assert Stack.started == [("server1", "1" * 40, {})]


def test_a_release_is_a_copy_of_the_commit(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, "git", lambda *arguments: git(repository, *arguments))
    wanted = git(repository, "rev-parse", "HEAD")
    code = repository / SOURCES["spark"][0] / "code.py"
    code.write_text("changed after the deployment\n")
    copy = deploy.release(wanted, tmp_path / "servers")
    assert (copy / SOURCES["spark"][0] / "code.py").read_text() == "1\n"
    assert deploy.release(wanted, tmp_path / "servers") == copy


def test_old_copies_go_but_not_those_in_use(tmp_path):
    for number in range(deploy.KEPT_RELEASES + 3):
        path = tmp_path / "releases" / f"{number}abc"
        path.mkdir(parents=True)
        os.utime(path, (number, number))
    deploy.forget_releases(tmp_path, {"0abc"})
    assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == [
        "0abc",
        *(f"{number}abc" for number in range(3, deploy.KEPT_RELEASES + 3)),
    ]


def test_pushing_without_a_registry_says_so(capsys, monkeypatch):
    assert publish.main(["release", "push", "--images", "spark"]) == 0
    assert "no REGISTRY" in capsys.readouterr().out


def test_uncommitted_sources_are_not_pushed(monkeypatch):
    monkeypatch.setattr(publish, "references", lambda images, registry: {"spark": "r/mlops/spark:a-dirty"})
    with pytest.raises(ReleaseError, match="commit the changes"):
        publish.push(["spark"], "r")


def test_the_registrys_password_is_in_no_command_line(monkeypatch):
    called: list[tuple[list[str], str | None]] = []

    def record(command, input=None, **_options):  # noqa: A002 - the name subprocess.run gives it
        called.append((list(command), input))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(publish.subprocess, "run", record)
    monkeypatch.setattr(publish, "references", lambda images, registry: {"spark": "r:5000/mlops/spark:a"})
    monkeypatch.setattr(publish, "tag", lambda image: "a")
    monkeypatch.setenv("REGISTRY_LOGIN_USR", "pusher")
    monkeypatch.setenv("REGISTRY_LOGIN_PSW", "very-secret")
    assert publish.push(["spark"], "r:5000/x") == ["r:5000/mlops/spark:a"]
    assert "very-secret" not in json.dumps([command for command, _ in called])
    login = called[0]
    assert login[1] == "very-secret"
    assert login[0][-4:] == ["--username", "pusher", "--password-stdin", "r:5000"]
    assert [command[3:5] for command, _ in called[1:]] == [["tag", "mlops/spark:a"], ["push", "--quiet"]]


@pytest.fixture
def chat():
    heard: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path == "/broken" else 200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_chat_is_told(chat, monkeypatch):
    address, heard = chat
    monkeypatch.setenv("NOTIFICATION_WEBHOOK", f"{address}/hook")
    monkeypatch.setenv("JOB_NAME", "ml-model-services/main")
    monkeypatch.setenv("BUILD_NUMBER", "12")
    assert notify.main(["notify", "--outcome", "unsuccessful"]) == 0
    assert heard == [{"text": "ml-model-services/main #12: unsuccessful"}]


@pytest.mark.parametrize("webhook", ["http://10.0.0.1/secret-token", "file:///etc/passwd", "secret-token"])
def test_a_webhook_that_is_not_private_is_refused_without_being_shown(webhook, monkeypatch, capsys):
    monkeypatch.setenv("NOTIFICATION_WEBHOOK", webhook)
    assert notify.main(["notify", "--outcome", "fixed"]) == 1
    assert "secret-token" not in "".join(capsys.readouterr())


def test_a_chat_that_refuses_fails_without_showing_its_address(chat, monkeypatch, capsys):
    monkeypatch.setenv("NOTIFICATION_WEBHOOK", f"{chat[0]}/broken")
    assert notify.main(["notify", "--outcome", "fixed"]) == 1
    assert "/broken" not in "".join(capsys.readouterr())


def test_without_a_chat_nobody_is_told(monkeypatch, capsys):
    monkeypatch.delenv("NOTIFICATION_WEBHOOK", raising=False)
    assert notify.main(["notify", "--outcome", "fixed"]) == 0
    assert "told nobody" in capsys.readouterr().out
