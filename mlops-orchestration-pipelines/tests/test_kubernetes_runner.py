"""How a command of another root is run as a Job; the cluster is a small API server on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from operators.root_command_operator import choose_runner
from runners.kubernetes_api import KubernetesApi
from runners.kubernetes_job import RUNS, JobSettings, KubernetesJobRunner, choose_template
from runners.local_process import CommandFailedError, NotSetUpError

SPACE = "/namespaces/mlops-tasks"


def template(place: str, image: str = "mlops/feast-cli:1") -> dict[str, Any]:
    container = {"name": "task", "image": image, "env": [{"name": "KEPT", "value": "1"}]}
    return {
        "metadata": {"name": "t", "annotations": {RUNS: place}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}},
    }


class Cluster:
    """Answers as an API server does; `states` are what the pod's container is seen in, one a look."""

    def __init__(self) -> None:
        self.templates = [template("alpha"), template("alpha/models/one", "own/one:2")]
        self.states: list[dict[str, Any] | None] = [
            None,
            {"waiting": {"reason": "ContainerCreating"}},
            {"running": {}},
            {"terminated": {"exitCode": 0}},
        ]
        self.logs: list[list[str]] = [
            ["2026-01-01T00:00:01.5Z one", "2026-01-01T00:00:02.5Z \x1b[31mtwo\x1b[0m"]
        ]
        self.refuse: tuple[int, str] | None = None
        self.refuse_deletes = False
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.asked: list[tuple[str, dict[str, list[str]], str]] = []

    def change(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "POST" and self.refuse:
            return self.refuse[0], {"kind": "Status", "message": self.refuse[1]}
        if method == "POST":
            self.created.append(body)
            return 201, body
        if self.refuse_deletes:
            return 500, {"message": "not now"}
        self.deleted.append(path.rpartition("/")[2])
        self.states = [None]
        return 200, {}

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if method in ("POST", "DELETE"):
            return self.change(method, path, body)
        if path.endswith("/podtemplates"):
            return 200, {"items": self.templates}
        if path.endswith("/log"):
            return 200, "".join(f"{line}\n" for line in self.logs.pop(0)) if self.logs else ""
        state = self.states[0] if len(self.states) == 1 else self.states.pop(0)
        pod = {"metadata": {"name": "pod-1"}, "status": {"containerStatuses": [{"state": state}]}}
        return 200, {"items": [] if state is None else [pod]}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def api(cluster: Cluster, tmp_path: Path) -> Iterator[KubernetesApi]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            url = urlsplit(self.path)
            cluster.asked.append((url.path, parse_qs(url.query), self.headers["Authorization"]))
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, answer = cluster.answer(self.command, url.path, body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            return

    (tmp_path / "token").write_text("secret-token\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield KubernetesApi("127.0.0.1", server.server_port, "mlops-tasks", tmp_path, encrypted=False)
    server.shutdown()
    server.server_close()
    thread.join()


def run(api: KubernetesApi, *command: str, **more: Any) -> list[str]:
    lines: list[str] = []
    given = {"root": "alpha", "workdir": "", "environ": {}, "additions": {}} | more
    settings = JobSettings(start_seconds=0.3, run_seconds=60, poll_seconds=0.01)
    KubernetesJobRunner(api, settings).run(
        command=command or ("python", "-m", "x"), on_line=lines.append, **given
    )
    return lines


def test_a_task_is_a_job_of_its_roots_template_whose_lines_come_and_which_is_deleted(api, cluster):
    assert run(api, additions={"AS_OF": "2026-01-01"}) == ["one", "two"]
    (made,) = cluster.created
    pod = made["spec"]["template"]
    assert made["spec"]["backoffLimit"] == 0
    assert made["spec"]["activeDeadlineSeconds"] == 60
    assert pod["metadata"]["labels"] == {"a": "b"}
    container = pod["spec"]["containers"][0]
    assert container["command"] == ["python", "-m", "x"]
    assert container["workingDir"] == "/app"
    assert {"name": "KEPT", "value": "1"} in container["env"]
    assert {"name": "AS_OF", "value": "2026-01-01"} in container["env"]
    assert cluster.deleted == [made["metadata"]["name"]]
    assert {authorization for _, _, authorization in cluster.asked} == {"Bearer secret-token"}
    assert all(SPACE in path for path, _, _ in cluster.asked)


def test_the_pod_is_looked_for_by_the_name_of_its_job(api, cluster):
    run(api)
    looks = [query for path, query, _ in cluster.asked if path.endswith("/pods")]
    name = cluster.created[0]["metadata"]["name"]
    assert {query["labelSelector"][0] for query in looks} == {f"batch.kubernetes.io/job-name={name}"}


def test_the_longest_place_wins_and_the_folder_is_below_the_app(api, cluster):
    run(api, workdir="models/one")
    container = cluster.created[0]["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["workingDir"]) == ("own/one:2", "/app/models/one")
    with pytest.raises(NotSetUpError, match="no PodTemplate runs alphabet"):
        choose_template(cluster.templates, "alphabet", "")


def test_a_setting_is_filled_in_and_what_kubernetes_would_replace_is_not(api, cluster):
    run(api, "load", "${DATA_DIR}/landing", "$(HOME)", environ={"DATA_DIR": "/data"})
    container = cluster.created[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["load", "/data/landing", "$$(HOME)"]
    with pytest.raises(NotSetUpError, match="DATA_DIR"):
        run(api, "load", "${DATA_DIR}/landing")


def test_nothing_of_the_scheduler_reaches_the_task(api, cluster):
    run(api, environ={"AIRFLOW__CORE__FERNET_KEY": "x", "REDIS_PASSWORD": "y"})
    names = {e["name"] for e in cluster.created[0]["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert names == {"KEPT", "PYTHONUNBUFFERED"}


def test_a_failure_shows_how_it_ended_and_the_last_lines(api, cluster):
    cluster.states[-1] = {"terminated": {"exitCode": 3, "reason": "Error"}}
    with pytest.raises(CommandFailedError, match=r"(?s)exited with 3; its last lines:\n  \| one\n  \| two"):
        run(api)
    assert len(cluster.deleted) == 1


def test_too_little_memory_is_said(api, cluster):
    cluster.states[-1] = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    with pytest.raises(CommandFailedError, match=r"(?s)killed by SIGKILL.*more memory than its template"):
        run(api)


def test_a_program_that_is_not_there_needs_no_retry(api, cluster):
    cluster.states[-1] = {"terminated": {"exitCode": 128, "reason": "StartError", "message": "no such file"}}
    with pytest.raises(NotSetUpError, match="no such file"):
        run(api)


@pytest.mark.parametrize("reason", ["InvalidImageName", "CreateContainerConfigError"])
def test_a_pod_that_can_never_start_needs_no_retry(reason, api, cluster):
    cluster.states = [{"waiting": {"reason": reason, "message": "secret not found"}}]
    with pytest.raises(NotSetUpError, match="secret not found"):
        run(api)
    assert len(cluster.deleted) == 1


def test_a_pod_that_does_not_start_in_time_says_what_it_waits_for(api, cluster):
    cluster.states = [{"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}]
    with pytest.raises(CommandFailedError, match="was not started: no such image"):
        run(api)
    cluster.states = [None]
    with pytest.raises(CommandFailedError, match="is the quota used up"):
        run(api)


def test_a_right_that_is_missing_needs_no_retry(api, cluster):
    cluster.refuse = (403, "jobs.batch is forbidden")
    with pytest.raises(NotSetUpError, match=r"jobs\.batch is forbidden"):
        run(api)
    assert cluster.deleted == []


def test_a_log_that_breaks_off_goes_on_where_it_was(api, cluster):
    cluster.states = [*[{"running": {}}] * 2, {"terminated": {"exitCode": 0}}]
    first, second = "2026-01-01T00:00:01.1Z one", "2026-01-01T00:00:01.2Z two"
    cluster.logs = [[first], [first, second]]
    assert run(api) == ["one", "two"]
    asked = [query for path, query, _ in cluster.asked if path.endswith("/log")]
    assert [query.get("sinceTime") for query in asked] == [
        None,
        ["2026-01-01T00:00:01.1Z"],
    ]


def test_stopping_deletes_the_job_and_the_task_has_failed(api, cluster):
    cluster.states = [{"running": {}}]
    runner = KubernetesJobRunner(api, JobSettings(start_seconds=1, poll_seconds=0.01))

    def on_line(_line: str) -> None:
        runner.stop()

    with pytest.raises(CommandFailedError, match="its pod is gone"):
        runner.run(root="alpha", workdir="", command=["x"], environ={}, additions={}, on_line=on_line)
    assert cluster.deleted[0] == cluster.created[0]["metadata"]["name"]


def test_a_job_that_could_not_be_deleted_is_said_and_hides_nothing(api, cluster):
    cluster.states[-1] = {"terminated": {"exitCode": 3}}
    cluster.refuse_deletes = True
    lines: list[str] = []
    runner = KubernetesJobRunner(api, JobSettings(start_seconds=1, poll_seconds=0.01))
    with pytest.raises(CommandFailedError, match="exited with 3"):
        runner.run(root="alpha", workdir="", command=["x"], environ={}, additions={}, on_line=lines.append)
    assert "was not deleted and ends by itself: not now" in lines[-1]


def test_an_api_that_is_not_there_is_a_failure_that_may_be_tried_again(tmp_path):
    (tmp_path / "token").write_text("t")
    nowhere = KubernetesApi("127.0.0.1", 1, "mlops-tasks", tmp_path, encrypted=False)
    with pytest.raises(CommandFailedError, match="was not started"):
        run(nowhere)


def test_outside_of_a_cluster_it_says_what_is_missing(tmp_path):
    with pytest.raises(NotSetUpError, match="KUBERNETES_SERVICE_HOST"):
        choose_runner({"ROOT_COMMAND_RUNNER": "kubernetes"})
    inside = {
        "ROOT_COMMAND_RUNNER": "kubernetes",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
        "KUBERNETES_TASK_NAMESPACE": "mlops-tasks",
        "KUBERNETES_TOKEN_DIR": str(tmp_path),
    }
    with pytest.raises(NotSetUpError, match="holds no token"):
        choose_runner(inside)
    (tmp_path / "token").write_text("t")
    assert isinstance(choose_runner(inside), KubernetesJobRunner)
