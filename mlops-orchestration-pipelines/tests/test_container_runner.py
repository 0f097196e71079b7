"""How a command of another root is run in a container; the engine is a fake that keeps what it was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from requests.exceptions import ConnectionError as ConnectionLostError

from operators.root_command_operator import choose_runner
from runners.container import IMAGES, ContainerRunner, ContainerSettings, container_environment
from runners.local_process import CommandFailedError, LocalProcessRunner, NotSetUpError

REPOSITORY = Path(__file__).resolve().parents[2]


class FakeContainer:
    """A container that prints `output`, a list of log streams, and ends with `code`."""

    def __init__(self, output: list[list[bytes | Exception]], code: int = 0, *, oom: bool = False) -> None:
        self.output, self.code = list(output), code
        self.attrs = {"State": {"OOMKilled": oom}}
        self.status = "created"
        self.asked: list[dict[str, Any]] = []
        self.stopped: list[int] = []
        self.removed = 0
        self.start_error: Exception | None = None

    def start(self) -> None:
        if self.start_error:
            raise self.start_error
        self.status = "running"

    def logs(self, **asked):
        self.asked.append(asked)
        for piece in self.output.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def reload(self) -> None:
        if not self.output:
            self.status = "exited"

    def wait(self) -> dict[str, int]:
        return {"StatusCode": self.code}

    def stop(self, timeout: int) -> None:
        self.stopped.append(timeout)

    def remove(self, **_how) -> None:
        self.removed += 1


class FakeEngine:
    def __init__(self, container: FakeContainer | Exception) -> None:
        self.container = container
        self.created: dict[str, Any] = {}
        self.containers = self

    def create(self, image: str, **how) -> FakeContainer:
        self.created = {"image": image, **how}
        if isinstance(self.container, Exception):
            raise self.container
        return self.container


def log(*lines: str, second: int = 0) -> list[bytes | Exception]:
    return [
        f"2026-11-20T00:00:0{second}.{number:09}Z {line}\n".encode() for number, line in enumerate(lines, 1)
    ]


def run(container, *command, settings=None, environ=None, root="feature-store-management", workdir=""):
    engine, lines = FakeEngine(container), []
    runner = ContainerRunner(settings or ContainerSettings(user="10001:10001"), client=lambda: engine)
    runner.run(
        root=root,
        workdir=workdir,
        command=command or ("python", "-m", "load"),
        environ=environ or {},
        additions={"ADDED": "1"},
        on_line=lines.append,
    )
    return engine.created, lines


def test_lines_arrive_in_order_and_the_container_is_gone_afterwards():
    container = FakeContainer([log("one", "\x1b[32mtwo\x1b[0m", "")])
    _, lines = run(container)
    assert lines == ["one", "two"]
    assert container.removed == 1


def test_a_task_can_do_little_but_its_work():
    created, _ = run(FakeContainer([log("done")]))
    assert created["read_only"] is True
    assert created["cap_drop"] == ["ALL"]
    assert created["security_opt"] == ["no-new-privileges:true"]
    assert created["mem_limit"] == created["memswap_limit"] == "2g"
    assert created["pids_limit"] == 512
    assert created["user"] == "10001:10001"
    assert "privileged" not in created
    assert "ports" not in created


def test_the_command_runs_in_its_folder_of_the_roots_image_with_the_settings():
    created, _ = run(
        FakeContainer([log("done")]),
        "python", "-m", "load", "--source", "${DATA_DIR}/landing",
        root="ml-model-development", workdir="models/fraud_detection_xgboost",
        environ={"DATA_DIR": "/var/lib/mlops/data", "REDIS_PASSWORD": "x", "AIRFLOW__API__SECRET_KEY": "y"},
        settings=ContainerSettings.from_environment(
            {
                "MLOPS_VERSION": "1.2",
                "ROOT_COMMAND_NETWORK": "tasks",
                "ROOT_COMMAND_VOLUMES": "mlops-data:/var/lib/mlops/data /srv/keys:/keys:ro",
                "SERVER1_HOST": "172.17.0.1",
            }
        ),
    )  # fmt: skip
    assert created["image"] == "mlops/fraud-training:1.2"
    assert created["entrypoint"] == ["python"]
    assert created["command"] == ["-m", "load", "--source", "/var/lib/mlops/data/landing"]
    assert created["working_dir"] == "/app/models/fraud_detection_xgboost"
    assert created["environment"] == {
        "DATA_DIR": "/var/lib/mlops/data", "REDIS_PASSWORD": "x", "ADDED": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    assert created["network"] == "tasks"
    assert created["extra_hosts"] == {"server1": "172.17.0.1"}
    assert created["volumes"] == {
        "mlops-data": {"bind": "/var/lib/mlops/data", "mode": "rw"},
        "/srv/keys": {"bind": "/keys", "mode": "ro"},
    }


def test_neither_the_orchestrators_secrets_nor_its_paths_reach_a_task():
    environ = {
        "AIRFLOW_DB_PASSWORD": "a", "_AIRFLOW__X": "b", "PATH": "/opt/venv/bin", "PYTHONPATH": "/app",
        "DOCKER_HOST": "tcp://socket-proxy:2375", "MLOPS_VERSION": "dev", "VENV": "/opt/venv", "HOME": "/opt",
        "PYTHON_SHA256": "c", "LANG": "C.UTF-8", "S3_ENDPOINT_URL": "http://server1:8333",
    }  # fmt: skip
    assert container_environment(environ, {}) == {
        "S3_ENDPOINT_URL": "http://server1:8333",
        "PYTHONUNBUFFERED": "1",
    }


def test_the_dump_of_mlflows_database_alone_is_given_its_role():
    environ = {
        "MLFLOW_DB_USER": "mlflow_backup", "MLFLOW_DB_PASSWORD": "a", "MLFLOW_BACKUP_PASSWORD": "b",
        "MLFLOW_TRACKING_URI": "http://server2:5000",
    }  # fmt: skip
    dump, _ = run(FakeContainer([log("done")]), environ=environ, root="mlops-platform-infrastructure")
    assert environ.items() <= dump["environment"].items()
    other, _ = run(FakeContainer([log("done")]), environ=environ, root="feature-store-management")
    assert other["environment"].keys() & environ.keys() == {"MLFLOW_TRACKING_URI"}


def test_a_failure_shows_the_last_lines():
    container = FakeContainer([log(*(f"line {number}" for number in range(40)))], code=3)
    with pytest.raises(CommandFailedError, match="exited with 3") as failed:
        run(container)
    assert "| line 39" in str(failed.value)
    assert "| line 14" not in str(failed.value)
    assert container.removed == 1


@pytest.mark.parametrize(("code", "said"), [(137, "SIGKILL"), (143, "SIGTERM"), (255, "exited with 255")])
def test_a_killed_command_says_what_killed_it(code, said):
    with pytest.raises(CommandFailedError, match=said):
        run(FakeContainer([log("working")], code=code))


def test_a_command_that_needed_too_much_memory_is_told_so():
    with pytest.raises(CommandFailedError, match="more memory than 2g"):
        run(FakeContainer([log("working")], code=137, oom=True))


def test_a_broken_connection_loses_and_repeats_no_line(monkeypatch):
    monkeypatch.setattr("runners.container.time.sleep", lambda _: None)
    first = [*log("one", "two"), ConnectionLostError("reset")]
    container = FakeContainer([first, log("one", "two", "three")])
    _, lines = run(container)
    assert lines == ["one", "two", "three"]
    assert container.asked[1]["since"] == 1795132800  # 2026-11-20T00:00:00Z


def test_two_lines_of_the_same_moment_are_both_kept():
    stamp = b"2026-11-20T00:00:00.000000001Z "
    _, lines = run(FakeContainer([[stamp + b"one\n" + stamp + b"two\n"]]))
    assert lines == ["one", "two"]


def test_a_connection_that_never_returns_is_a_failure_and_the_container_goes(monkeypatch):
    monkeypatch.setattr("runners.container.time.sleep", lambda _: None)
    container = FakeContainer([[ConnectionLostError("reset")] for _ in range(20)])
    with pytest.raises(CommandFailedError, match="engine was lost"):
        run(container)
    assert container.removed == 1


def test_a_missing_image_can_not_be_mended_by_a_retry():
    with pytest.raises(NotSetUpError, match="no image mlops/feast-cli:dev"):
        run(ImageNotFound("404", explanation="No such image: mlops/feast-cli:dev"))


def test_a_missing_network_can_not_be_mended_by_a_retry():
    container = FakeContainer([])
    container.start_error = NotFound("404", explanation="network tasks not found")
    with pytest.raises(NotSetUpError, match="network tasks not found"):
        run(container)
    assert container.removed == 1


def test_a_program_that_the_image_lacks_can_not_be_mended_by_a_retry():
    container = FakeContainer([])
    container.start_error = APIError("400", explanation='exec: "dbt": executable file not found in $PATH')
    with pytest.raises(NotSetUpError, match="has no dbt"):
        run(container, "dbt")


def test_a_program_that_the_first_process_does_not_find_can_not_be_mended_by_a_retry():
    with pytest.raises(NotSetUpError, match="can't run dbt: exec dbt failed"):
        run(FakeContainer([log("exec dbt failed")], code=127), "dbt")


def test_an_engine_that_does_not_answer_is_worth_a_retry():
    with pytest.raises(CommandFailedError, match="was not started"):
        run(DockerException("connection refused"))


def test_a_missing_setting_stops_before_anything_starts():
    container = FakeContainer([log("never")])
    with pytest.raises(NotSetUpError, match="DATA_DIR"):
        run(container, "python", "${DATA_DIR}/x")
    assert container.status == "created"


def test_stop_ends_the_running_container_and_nothing_else():
    container = FakeContainer([log("one")])
    runner = ContainerRunner(ContainerSettings(), client=lambda: FakeEngine(container), grace_seconds=7)
    runner.stop()
    assert container.stopped == []
    runner.run(
        root="feature-store-management", workdir="", command=["x"], environ={}, additions={},
        on_line=lambda _: runner.stop(),
    )  # fmt: skip
    assert container.stopped == [7]
    runner.stop()
    assert container.stopped == [7]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROOT_COMMAND_IMAGES", "alpha"),
        ("ROOT_COMMAND_PIDS", "many"),
        ("ROOT_COMMAND_VOLUMES", "data"),
        ("ROOT_COMMAND_VOLUMES", "data:/data:rx"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(name, value):
    with pytest.raises(NotSetUpError, match=name):
        run(FakeContainer([log("x")]), settings=ContainerSettings.from_environment({name: value}))


def test_every_task_has_an_image(dag_bag):
    settings = ContainerSettings()
    places = {(task.root, task.workdir) for dag in dag_bag.dags.values() for task in dag.tasks}
    images = {settings.image(*place).removesuffix(":dev") for place in places}
    assert images <= set(IMAGES.values())


def test_images_belong_to_folders_that_exist():
    assert [place for place in IMAGES if not (REPOSITORY / place).is_dir()] == []


def test_the_setting_chooses_the_runner():
    assert isinstance(choose_runner({"ROOT_COMMAND_RUNNER": "container"}), ContainerRunner)
    assert isinstance(choose_runner({}), LocalProcessRunner)
