"""Each Jenkinsfile, run: what a change builds, in which order, who approves, what follows a failure."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from jenkins_harness import (
    NAMES,
    PLATFORM,
    REPOSITORY,
    commands,
    images,
    jenkinsfile,
    missing,
    run,
)

from server_tools.releases import SOURCES

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "runs")

# Pipeline -> a change of its own, and a change of which it builds only a part.
OWN_CHANGE = {
    "feature_store": "feature-store-management/feast_repository/entities.py",
    "ml_model_development": "ml-model-development/models/fraud_detection_xgboost/src/train.py",
    "ml_model_services": "ml-model-services/services/fraud_detection_api/app/main.py",
    "mlops_orchestration": "mlops-orchestration-pipelines/dags/utility_dags/x.py",
    "platform_infra": f"{PLATFORM}/docker_compose_setups/spark/docker-compose.yml",
    "reporting_monitoring": "ml-reporting-and-monitoring-logic/advanced_monitoring_scripts/verdicts.py",
}
IMAGES = {
    "feature_store": {"feast-cli"},
    "ml_model_development": {"fraud-training", "churn-training", "recommendation-training"},
    "ml_model_services": {
        "fraud-detection-api",
        "customer-churn-api",
        "movie-recommendation-api",
        "decision-page",
    },
    "mlops_orchestration": {"airflow-worker"},
    "platform_infra": {"mlflow-server", "spark", "backup", "jenkins"},
    "reporting_monitoring": {"reporting"},
}
SHARED_CODE = "ml-model-services/common_service_libs/auth_utils.py"
AFTER_SUCCESS = {"previous_result": "SUCCESS"}


def requests(name: str) -> dict[str, dict[str, object]]:
    own = {"changed": [OWN_CHANGE[name]], **AFTER_SUCCESS}
    return {
        "own change": own,
        "foreign change": {"changed": ["LICENSE"], **AFTER_SUCCESS},
        "first build": {"changed": []},
        "after a failure": {"changed": ["LICENSE"], "previous_result": "FAILURE"},
        "everything": {"changed": [], "parameters": {"EVERYTHING": True}, **AFTER_SUCCESS},
        "branch": {**own, "branch": "feature/new"},
        "tests fail": {
            **own,
            "fail": ["^make -C (?!mlops-platform-infrastructure (release|push)).* (test|config-server1)"],
        },
        "check fails": {**own, "fail": [" check$"]},
        "build fails": {"changed": [], "fail": ["release-images"]},
        "staging smoke fails": {"changed": [], "fail": ["smoke-test .*ENVIRONMENT=staging"]},
        "rejected": {"changed": [], "approve": False},
        "production deploy fails": {"changed": [], "fail": ["deploy-production"]},
        "production smoke fails": {"changed": [], "fail": ["smoke-test .*ENVIRONMENT=production"]},
        "shared code": {"changed": [SHARED_CODE], **AFTER_SUCCESS},
        **{
            f"source of {image}": {"changed": [f"{sources[0]}/something.py"], **AFTER_SUCCESS}
            for image, sources in SOURCES.items()
        },
    }


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("harness")


@pytest.fixture(scope="module")
def ran(small_folder):
    ours = {jenkinsfile(name): list(requests(name).values()) for name in NAMES}
    return run(ours | small_requests(small_folder))["pipelines"]


@pytest.fixture(scope="module")
def reports(ran):
    found = {name: dict(zip(requests(name), ran[jenkinsfile(name)], strict=True)) for name in NAMES}
    for name, by_request in found.items():
        for request, report in by_request.items():
            assert "error" not in report, f"{name}, {request}: {report.get('error')}"
    return found


def built(report) -> set[str]:
    return set().union(
        *(images(command) for command in commands(report) if "release-images" in command), set()
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_change_elsewhere_builds_tests_and_deploys_nothing(reports, name):
    report = reports[name]["foreign change"]
    assert (report["result"], report["steps"], report["inputs"]) == ("SUCCESS", [], [])


@pytest.mark.parametrize("name", NAMES)
def test_own_change_is_checked_and_tested_with_reports_before_it_is_built_and_deployed(reports, name):
    report = reports[name]["own change"]
    assert report["result"] == "SUCCESS"
    verbs = [re.sub(r"^make -C \S+ (\S+).*", r"\1", command) for command in commands(report)]
    first = {verb: verbs.index(verb) for verb in set(verbs)}
    last = {verb: len(verbs) - 1 - verbs[::-1].index(verb) for verb in set(verbs)}
    assert last["check"] < first["deploy-staging"]
    assert last["test"] < first["deploy-staging"]
    if "release-images" in verbs:
        assert max(last["check"], last["test"]) < first["release-images"] < first["push-images"]
        assert last["push-images"] < first["deploy-staging"]
    assert first["deploy-staging"] < first["smoke-test"] < first["deploy-production"] < last["smoke-test"]
    assert "rollback" not in verbs
    assert "notify" not in verbs
    reported = [step["pattern"] for step in report["steps"] if step["kind"] == "junit"]
    assert reported
    assert all(pattern.endswith("/.pytest_cache/junit.xml") for pattern in reported)


@pytest.mark.parametrize("name", NAMES)
def test_every_image_of_a_sub_project_is_built_at_first_and_only_what_changed_later(reports, name):
    assert built(reports[name]["first build"]) == IMAGES[name]
    assert built(reports[name]["after a failure"]) == IMAGES[name]
    assert built(reports[name]["everything"]) == IMAGES[name]
    for image in SOURCES:
        wanted = {image} & IMAGES[name]
        assert built(reports[name][f"source of {image}"]) == wanted, image


def test_all_images_have_a_pipeline():
    assert set().union(*IMAGES.values()) == set(SOURCES)


def test_shared_code_of_the_services_builds_each_of_them(reports):
    assert built(reports["ml_model_services"]["shared code"]) == IMAGES["ml_model_services"]
    tested = [
        command for command in commands(reports["ml_model_services"]["shared code"]) if " test " in command
    ]
    assert len(tested) == 1 + len(IMAGES["ml_model_services"])


def test_a_service_alone_tests_itself_and_not_the_others(reports):
    tested = [
        command for command in commands(reports["ml_model_services"]["own change"]) if " test " in command
    ]
    assert tested == [
        "make -C ml-model-services test UNITS=.",
        "make -C ml-model-services test UNITS=services/fraud_detection_api",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_is_tested_and_never_published(reports, name):
    report = reports[name]["branch"]
    assert commands(report)
    assert not report["inputs"]
    assert not [command for command in commands(report) if re.search("image|deploy|rollback", command)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("request_name", ["tests fail", "check fails", "build fails"])
def test_nothing_is_deployed_after_a_failure_before_it(reports, name, request_name):
    report = reports[name][request_name]
    assert report["result"] == "FAILURE"
    assert not [command for command in commands(report) if "deploy" in command]
    assert commands(report)[-1] == f"make -C {PLATFORM} notify OUTCOME=unsuccessful"


@pytest.mark.parametrize("name", NAMES)
def test_production_waits_for_a_named_person_after_staging_is_well(reports, name):
    [asked] = reports[name]["first build"]["inputs"]
    assert (asked["stage"], asked["submitter"]) == ("Production", "deployer,admin")
    report = reports[name]["rejected"]
    assert report["result"] == "ABORTED"
    assert [command for command in commands(report) if "deploy-staging" in command]
    assert not [
        command for command in commands(report) if "deploy-production" in command or "rollback" in command
    ]
    # Who approved reaches the command that records it.
    for step in reports[name]["first build"]["steps"]:
        if "deploy-production" in step.get("command", ""):
            assert step["environment"]["APPROVED_BY"] == "somebody"


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_smoke_test_of_staging_goes_back_and_never_asks_for_production(reports, name):
    report = reports[name]["staging smoke fails"]
    assert report["result"] == "FAILURE"
    assert report["inputs"] == []
    said = commands(report, "Staging")
    deployed = servers_of(said, "deploy-staging")
    undone = servers_of(said, "rollback", "ENVIRONMENT=staging")
    assert deployed
    assert set(deployed) <= set(undone)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("request_name", ["production smoke fails", "production deploy fails"])
def test_a_failure_in_production_goes_back_on_every_server_and_looks_again(reports, name, request_name):
    report = reports[name][request_name]
    assert report["result"] == "FAILURE"
    said = commands(report, "Production")
    deployed = servers_of(said, "deploy-production")
    after = said[max(i for i, command in enumerate(said) if "deploy-production" in command) + 1 :]
    assert deployed
    for server in deployed:
        back = next(i for i, c in enumerate(after) if "rollback" in c and f"SERVER={server} " in c)
        assert "ENVIRONMENT=production" in after[back]
        assert any("smoke-test" in command and f"SERVER={server} " in command for command in after[back:])
    assert commands(report)[-1].endswith("notify OUTCOME=unsuccessful")


@pytest.mark.parametrize("name", NAMES)
def test_a_build_that_is_well_again_is_told(reports, name):
    assert commands(reports[name]["after a failure"])[-1].endswith("notify OUTCOME=fixed")


@pytest.mark.parametrize("name", NAMES)
def test_deployments_run_on_agents_of_their_environment_and_server(reports, name):
    for step in reports[name]["production smoke fails"]["steps"]:
        found = re.search(r"SERVER=(\S+)", step.get("command", ""))
        if found:
            environment = "production" if "production" in step["command"] else "staging"
            assert step["agent"] == f"{environment} && {found[1]}", step
        else:
            assert step["agent"] in {"build", "docker"} or step["kind"] == "checkout", step


@pytest.mark.parametrize("name", NAMES)
def test_secrets_reach_commands_by_their_environment_only(reports, name):
    given = set()
    for report in reports[name].values():
        for step in report["steps"]:
            if step["kind"] != "sh":
                continue
            assert "SECRET-" not in step["command"], step
            for secret in step["secrets"]:
                assert not re.search(rf"\$\{{?{secret}\b", step["command"]), step
            assert not any("SECRET-" in value for value in step["environment"].values())
            given |= set(step["secrets"])
    assert {"REGISTRY_LOGIN_PSW", "NOTIFICATION_WEBHOOK"} <= given


def test_every_command_is_a_make_target_that_would_run(reports):
    every = {
        command
        for by_request in reports.values()
        for report in by_request.values()
        for command in commands(report)
    }
    assert len(every) > 50
    targets: dict[str, set[str]] = {}
    for command in sorted(every):
        found = re.fullmatch(r"make -C ([a-z-]+) ([a-z0-9-]+)( [A-Z]+=[\w,./-]+)*", command)
        assert found, command
        targets.setdefault(found[1], set()).add(found[2])
    for folder, names in targets.items():
        dry_run(folder, sorted(names))


def dry_run(folder: str, targets: list[str]) -> None:
    """`make -n`: the targets exist and all that they need can be made."""
    given = ["IMAGES=spark", "OUTCOME=fixed", f"LOCAL_DIR={REPOSITORY / '.local'}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    ran = subprocess.run(
        ["make", "-n", "-C", folder, *targets, *given],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{folder}: {ran.stderr}"


def servers_of(said: list[str], verb: str, also: str = "") -> list[str]:
    return [
        re.findall(r"SERVER=(\S+)", command)[0]
        for command in said
        if f" {verb} " in command and also in command
    ]


def test_pipelines_are_thin():
    for name in NAMES:
        text = jenkinsfile(name).read_text()
        assert not re.search(r"\bscript\s*\{|\bsh\s*\(|\bsh\s+\"", text), name


# --- the harness itself ---


GOOD = """pipeline {
    agent none
    stages {
        stage('One') {
            when { beforeAgent true; anyOf { changeset 'a/**'; branch 'release/*' } }
            agent { label 'build' }
            environment { LOGIN = credentials('registry') }
            steps { sh 'make one' }
            post { unsuccessful { sh 'make undo' } always { junit 'x.xml' } }
        }
        stage('Two') {
            agent { label 'build' }
            steps { sh 'make two' }
        }
    }
}
"""
BAD = {
    "an unknown directive": (GOOD.replace("post {", "afterwards {"), "afterwards"),
    "an unknown step": (GOOD.replace("sh 'make one'", "bat 'make one'"), "bat"),
    "an unknown condition": (GOOD.replace("changeset 'a/**'", "chngeset 'a/**'"), "chngeset"),
    "an unknown post condition": (GOOD.replace("unsuccessful {", "unsucessful {"), "unsucessful"),
    "a step without an agent": (GOOD.replace("agent { label 'build' }", "", 1), "needs an agent"),
    "a stage without steps": (GOOD.replace("steps { sh 'make two' }", ""), "exactly one of"),
    "a nested stage name twice": (GOOD.replace("stage('Two')", "stage('One')"), "two stages"),
    "any agent": (GOOD.replace("agent none", "agent any"), "any"),
    "an agent without a label": (GOOD.replace("agent { label 'build' }", "agent { }"), "label"),
    "an unknown variable": (GOOD.replace("sh 'make one'", 'sh "make ${NOBODY}"'), "NOBODY"),
    "a syntax error": (GOOD.replace("pipeline {", "pipeline {{", 1), "startup failed"),
    "script blocks": (GOOD.replace("sh 'make one'", "script { sh 'make one' }"), "script"),
    "a timeout without a unit": (
        GOOD.replace("stages {", "options { timeout(time: 3) }\n    stages {", 1),
        "timeout",
    ),
    "an unknown parameter": (GOOD, "no parameters"),
}


def small_requests(folder: Path) -> dict[Path, list[dict[str, object]]]:
    asked: dict[Path, list[dict[str, object]]] = {}
    for number, (name, (text, _)) in enumerate(BAD.items()):
        path = folder / f"bad{number}"
        path.write_text(text)
        parameters = {"WHAT": 1} if name == "an unknown parameter" else {}
        asked[path] = [{"changed": ["a/b/c.py"], "parameters": parameters}]
    good, leaky = folder / "good", folder / "leaky"
    good.write_text(GOOD)
    leaky.write_text(GOOD.replace("sh 'make one'", 'sh "make one PASSWORD=${LOGIN_PSW}"'))
    asked[good] = [
        {"changed": ["a/b/c.py"]},
        {"changed": ["ab/c.py"]},
        {"changed": [], "branch": "release/7"},
        {"changed": ["a/c.py"], "fail": ["make one"]},
    ]
    asked[leaky] = [{"changed": ["a/c.py"]}]
    return asked


@pytest.fixture(scope="module")
def small(ran, small_folder):
    found = {name: ran[small_folder / f"bad{number}"][0] for number, name in enumerate(BAD)}
    return found | {"good": ran[small_folder / "good"], "leaky": ran[small_folder / "leaky"][0]}


@pytest.mark.parametrize("name", BAD)
def test_the_harness_refuses_what_it_does_not_know(small, name):
    assert BAD[name][1] in small[name].get("error", "nothing was refused")


def test_the_harness_runs_what_the_conditions_say(small):
    inside, outside, release, failed = small["good"]
    assert commands(inside) == ["make one", "make two"]
    assert commands(outside) == ["make two"]
    assert commands(release) == ["make one", "make two"]
    assert commands(failed) == ["make one", "make undo"]
    assert failed["result"] == "FAILURE"
    assert failed["skipped"] == ["Two"]


def test_the_harness_shows_a_secret_in_a_command_line(small):
    assert commands(small["leaky"])[0] == "make one PASSWORD=SECRET-registry-password"


def test_a_make_target_that_is_not_there_is_found():
    with pytest.raises(AssertionError, match="no-such-target"):
        dry_run("feature-store-management", ["no-such-target"])


def test_every_jenkinsfile_is_run_here():
    assert {path.name for path in Path(jenkinsfile("x")).parent.glob("Jenkinsfile_*")} == {
        f"Jenkinsfile_{name}" for name in NAMES
    }
