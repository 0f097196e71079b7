"""The GitHub workflows: form, least rights, pinned actions, nothing but make, and a way back."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from jenkins_harness import REPOSITORY, images

from server_tools.releases import SOURCES

SCHEMA = yaml.safe_load((Path(__file__).parent / "workflow_schema.yaml").read_text())
FOLDER = REPOSITORY / ".github/workflows"
NAMES = ("training", "deploy")


class Workflow(yaml.SafeLoader):
    """YAML as GitHub reads it: `on` is a word."""


Workflow.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Workflow.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$"), list("tf"))


def load(name: str) -> dict[str, Any]:
    return yaml.load((FOLDER / f"{name}.yaml").read_text(), Loader=Workflow)


def findings(workflow: dict[str, Any]) -> list[str]:
    """Return what is against the rules in a workflow of the right form."""
    found = []
    jobs = workflow["jobs"]
    for name, job in jobs.items():
        needs = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
        found += [f"{name} needs {other}, which is no job" for other in needs if other not in jobs]
        runs = [step["run"] for step in job["steps"] if "run" in step]
        for step in job["steps"]:
            found += [f"{name}: {finding}" for finding in step_findings(step)]
        for environment in ("staging", "production"):
            if any(f"deploy-{environment}" in run for run in runs):
                if job.get("environment") != environment:
                    found.append(f"{name} deploys without the approval of environment {environment}")
                if not undone(job["steps"], environment):
                    found.append(f"{name}: a failure in {environment} is not undone")
    if not jobs_are_in_order(jobs):
        found.append("production does not wait for staging")
    return found


def step_findings(step: dict[str, Any]) -> list[str]:
    found = []
    if "uses" in step:
        if not re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]):
            found.append(f"{step['uses']} is not pinned")
        if "checkout" in step["uses"] and step.get("with", {}).get("persist-credentials") is not False:
            found.append("the token stays on the disk")
        return found
    if not re.fullmatch(r"make [\w ./=,-]+", step["run"].strip()):
        found.append(f"not a make target: {step['run']}")
    found += [
        f"{name} of a secret in the command" for name in step.get("env", {}) if f"${name}" in step["run"]
    ]
    return found


def undone(steps: list[dict[str, Any]], environment: str) -> bool:
    last = steps[-1]
    return (
        last.get("if") == "failure() || cancelled()"
        and " rollback " in last.get("run", "")
        and f"ENVIRONMENT={environment}" in last["run"]
    )


def jobs_are_in_order(jobs: dict[str, Any]) -> bool:
    return "production" not in jobs or jobs["production"].get("needs") == "staging"


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_has_the_documented_form_and_keeps_the_rules(name):
    jsonschema.validate(load(name), SCHEMA)
    assert findings(load(name)) == []


def test_there_are_no_others():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)


def test_versions_of_actions_are_said_beside_their_commits():
    for name in NAMES:
        for line in (FOLDER / f"{name}.yaml").read_text().splitlines():
            if "uses:" in line:
                assert re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_paths_exist_and_images_are_ours():
    for name in NAMES:
        workflow = load(name)
        for path in workflow["on"]["push"]["paths"]:
            assert (REPOSITORY / path.removesuffix("/**")).exists(), path
        for job in workflow["jobs"].values():
            for step in job["steps"]:
                assert images(step.get("run", "")) <= set(SOURCES)


MUTATIONS = {
    "an action by its branch": lambda w: w["jobs"]["images"]["steps"][0].update(uses="actions/checkout@v4"),
    "an action of somebody": lambda w: w["jobs"]["images"]["steps"][0].update(uses=f"some/action@{'a' * 40}"),
    "the token on the disk": lambda w: w["jobs"]["images"]["steps"][0]["with"].pop("persist-credentials"),
    "rights to write": lambda w: w["permissions"].update(contents="write"),
    "rights to packages": lambda w: w["permissions"].update(packages="write"),
    "no rights named": lambda w: w.pop("permissions"),
    "a shell script": lambda w: w["jobs"]["images"]["steps"][1].update(run="curl x | sh"),
    "an expression in a command": lambda w: w["jobs"]["images"]["steps"][1].update(
        run="make demo NAME=${{ github.event.head_commit.message }}"
    ),
    "a secret in a command": lambda w: w["jobs"]["images"]["steps"][3].update(
        run="make x P=$REGISTRY_LOGIN_PSW"
    ),
    "production without approval": lambda w: w["jobs"]["production"].pop("environment"),
    "production beside staging": lambda w: w["jobs"]["production"].update(needs="images"),
    "no way back": lambda w: w["jobs"]["production"]["steps"].pop(),
    "a way back of the other environment": lambda w: w["jobs"]["production"]["steps"][-1].update(
        w["jobs"]["staging"]["steps"][-1]
    ),
    "no end": lambda w: w["jobs"]["staging"].pop("timeout-minutes"),
    "a job that nobody has": lambda w: w["jobs"]["staging"].update(needs="image"),
    "two at a time": lambda w: w.pop("concurrency"),
    "a key that is none": lambda w: w["jobs"]["staging"].update(timeout_minutes=3),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_rule_that_is_broken_is_found(name):
    workflow = copy.deepcopy(load("deploy"))
    MUTATIONS[name](workflow)
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(workflow) or findings(workflow)
