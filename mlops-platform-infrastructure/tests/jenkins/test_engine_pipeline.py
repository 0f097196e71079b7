"""A pipeline's own commands, run: check, test, image, deployment, a smoke test that fails, the way back.

A clone of the repository stands for the agent's workspace. Of server 3 only the fraud service runs, on an
address of its own; nothing that it needs does, so it is alive, not ready, and the smoke test must refuse it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from jenkins_harness import PLATFORM, REPOSITORY, commands, jenkinsfile, missing, run

pytestmark = [pytest.mark.engine, pytest.mark.skipif(bool(missing()), reason=missing() or "runs")]

LOCAL = Path(os.environ.get("LOCAL_DIR") or REPOSITORY / ".local").resolve()
IMAGE = "fraud-detection-api"
OTHERS = ("customer-churn-api", "movie-recommendation-api", "decision-page")
ADDRESS = "127.0.0.33"
RECORD = LOCAL / "reports/make-targets.json"


class Workspace:
    """A clone, a set of servers of its own, and the commands that were run in it."""

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "workspace"
        self.servers = folder / "servers"
        self.project = f"pipeline-{uuid.uuid4().hex[:6]}"
        subprocess.run(
            ["git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(self.clone)], check=True
        )
        # The environments of this machine are used; a fresh clone's locks look newer than they are.
        for lock in self.clone.glob("**/*requirements*.txt"):
            os.utime(lock, (0, 0))
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
        } | {
            "LOCAL_DIR": str(LOCAL),
            "MLOPS_SERVERS_DIR": str(self.servers),
            "REPORTS_DIR": str(folder / "reports"),
            "PYTEST_ADDOPTS": "--junitxml=.pytest_cache/junit.xml",
        }
        self.ran: list[dict[str, object]] = []
        self.names: set[str] = set()

    def sh(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        began = time.monotonic()
        done = subprocess.run(
            command.split(),
            cwd=self.clone,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds = round(time.monotonic() - began, 1)
        print(f"{seconds:7.1f} s  exit {done.returncode}  {command}", flush=True)
        self.ran.append({"command": command, "exit": done.returncode, "seconds": seconds})
        return done

    def tags(self) -> dict[str, str]:
        names = self.tool("release", "tags", "--images", ",".join((IMAGE, *OTHERS))).split()
        self.names |= {name for name in names if not docker("images", "--quiet", name)}
        found = {name.split("/")[1].split(":")[0]: name for name in names}
        base = f"mlops/decision-service-base:{found[IMAGE].split(':')[1]}"
        self.names |= set() if docker("images", "--quiet", base) else {base}
        return found

    def tool(self, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "server_tools", *arguments],
            cwd=self.clone / PLATFORM,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def change_and_commit(self) -> None:
        with (self.clone / "ml-model-services/services/fraud_detection_api/app/main.py").open("a") as source:
            source.write("# Another version.\n")
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, "commit", "-qam", "Another version"], cwd=self.clone, check=True)

    def running_image(self) -> str:
        return docker(
            "ps", "--filter", f"label=com.docker.compose.project={self.project}-server3",
            "--filter", "label=com.docker.compose.service=fraud-api", "--format", "{{.Image}}",
        )  # fmt: skip


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Iterator[Workspace]:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker Engine answers")
    made = Workspace(tmp_path_factory.mktemp("pipeline"))
    made.tool("secrets")
    settings = made.servers / "servers.env"
    text = settings.read_text().replace("API_BIND=127.0.0.1", f"API_BIND={ADDRESS}")
    settings.write_text(text.replace("COMPOSE_PROJECT=mlops", f"COMPOSE_PROJECT={made.project}"))
    services = json.loads(made.tool("services", "--server", "server3"))
    made.environment["WITHOUT"] = " ".join(sorted(set(services) - {"fraud-api", "decision-volumes"}))
    yield made
    made.tool("down", "--server", "3", "--delete-data")
    # Only what was named here: others may build images at the same time.
    made_here = [name for name in sorted(made.names) if docker("images", "--quiet", name)]
    if made_here:
        docker("image", "rm", *made_here)
    write_record(made.ran)


def write_record(ran: list[dict[str, object]]) -> None:
    """Leave which commands were run, when and how they ended, and which `make -n` alone looked at."""
    document = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    results = {entry["command"]: entry for entry in document.get("results", [])}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    results |= {str(entry["command"]): entry | {"at": now} for entry in ran}
    dry = {command for command in recorded_commands() if command not in results}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "command": "make jenkins-check",
        "date": now,
        "results": sorted(results.values(), key=lambda entry: str(entry["command"])),
        "only_dry_run": sorted(dry),
    }
    RECORD.write_text(json.dumps(document, indent=1) + "\n")


@functools.cache
def recorded_commands() -> frozenset[str]:
    """Every command that a pipeline records when all is built and deployed, rolled back, well again."""
    requests = [
        {"changed": [], "previous_result": "FAILURE"},
        {"changed": [], "fail": ["smoke-test .*production"]},
    ]
    answered = run(dict.fromkeys(jenkinsfile("x").parent.glob("Jenkinsfile_*"), requests))["pipelines"]
    return frozenset(
        command for reports in answered.values() for report in reports for command in commands(report)
    )


@pytest.fixture(scope="module")
def recorded() -> list[str]:
    """What the services' pipeline runs for a change of the fraud service that fails in staging."""
    request = {
        "changed": ["ml-model-services/services/fraud_detection_api/app/main.py"],
        "previous_result": "SUCCESS",
        "fail": ["smoke-test .*ENVIRONMENT=staging"],
    }
    path = jenkinsfile("ml_model_services")
    return commands(run({path: [request]})["pipelines"][path][0])


def test_the_commands_of_a_pipeline_run_and_a_failed_smoke_test_brings_back_what_ran_before(
    workspace, recorded
):
    # What an earlier build left: images of the services that did not change, and a first deployment.
    first = workspace.tags()
    for image in OTHERS:
        docker("tag", f"mlops/{IMAGE}:dev", first[image])
    deploy = next(command for command in recorded if "deploy-staging" in command)
    build = next(command for command in recorded if "release-images" in command)
    done = workspace.sh(build)
    assert done.returncode == 0, done.stdout[-4000:]
    done = workspace.sh(deploy, BUILD_TAG="jenkins-1", APPROVED_BY="deployer")
    assert done.returncode == 0, done.stdout
    assert workspace.running_image() == first[IMAGE]

    # The push that the recorded commands are about.
    workspace.change_and_commit()
    second = workspace.tags()
    assert second[IMAGE] != first[IMAGE]
    assert all(second[image] == first[image] for image in OTHERS)
    seen = []
    for command in recorded:
        done = workspace.sh(command, BUILD_TAG="jenkins-2")
        target = command.split()[3]
        seen.append(target)
        expected = 2 if target == "smoke-test" else 0
        assert done.returncode == expected, f"{command}\n{done.stdout[-4000:]}"
        if target == "deploy-staging":
            assert workspace.running_image() == second[IMAGE]
        if target == "smoke-test":
            assert re.search(rf"FAILS +{IMAGE} /readyz", done.stdout), done.stdout
            assert re.search(rf"FAILS +{IMAGE} /predict", done.stdout), done.stdout
        if target == "rollback":
            assert workspace.running_image() == first[IMAGE]
    assert {
        "check",
        "test",
        "release-images",
        "push-images",
        "deploy-staging",
        "smoke-test",
        "rollback",
        "notify",
    } <= set(seen)

    state = json.loads((workspace.servers / "deployments.server3.json").read_text())
    assert [(entry["build"], entry["state"]) for entry in state["history"]] == [
        ("jenkins-1", "deployed"),
        ("jenkins-2", "rolled back"),
    ]
    assert state["history"][1]["images"] == {IMAGE: {"from": first[IMAGE], "to": second[IMAGE]}}
    reports = list(workspace.clone.glob("ml-model-services/**/.pytest_cache/junit.xml"))
    assert len(reports) == 2
    assert all(b'tests="' in report.read_bytes() for report in reports)


def test_an_image_that_was_never_built_is_not_deployed(workspace):
    workspace.change_and_commit()
    before = workspace.running_image()
    done = workspace.sh(
        f"make -C {PLATFORM} deploy-staging SERVER=server3 IMAGES={IMAGE}", BUILD_TAG="jenkins-3"
    )
    assert done.returncode != 0
    assert "build it first" in done.stdout
    assert workspace.running_image() == before


CHEAP = (
    f"make -C {PLATFORM} secrets",
    f"make -C {PLATFORM} policy",
    f"make -C {PLATFORM} config-server1",
    f"make -C {PLATFORM} config-server2",
    f"make -C {PLATFORM} config-server3",
    "make -C ml-reporting-and-monitoring-logic check",
    "make -C ml-reporting-and-monitoring-logic test",
    "make -C mlops-orchestration-pipelines check",
    f"make -C {PLATFORM} notify OUTCOME=fixed",
)


@pytest.mark.parametrize("command", CHEAP)
def test_the_cheap_commands_of_other_pipelines_run(workspace, command):
    assert command in recorded_commands()
    done = workspace.sh(command)
    assert done.returncode == 0, done.stdout[-4000:]
