"""The controller's configuration, plugins, jobs and image: checked without a Jenkins, by rules of our own."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from jenkins_harness import CONFIG, NAMES, REPOSITORY, ROOT, jenkinsfile, missing, run

CASC = CONFIG / "casc/jenkins.yaml"
SCHEMA = yaml.safe_load((Path(__file__).parent / "casc_schema.yaml").read_text())
STACK = yaml.safe_load((ROOT / "docker_compose_setups/jenkins/docker-compose.yml").read_text())
# Keys whose value is a secret: a reference to a file below /run/secrets and nothing else, no default either.
SECRET_KEYS = {"password", "secret", "privateKey", "passphrase", "token", "apiToken", "secretKey"}
SECRET_REFERENCE = re.compile(r"\$\{[a-z_]+\}")
READ_ONLY = {"Overall/Read", "Job/Read", "View/Read"}
AGENTS = {"build", "docker", "staging", "production"}
PLUGINS = CONFIG / "initial_config/plugins.txt"


def casc() -> dict[str, Any]:
    return yaml.safe_load(CASC.read_text())


def values(node: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every leaf: where it stands, its key, its value."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from values(value, f"{path}/{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from values(value, f"{path}/{number}")
    else:
        yield path, path.rpartition("/")[2], node


def findings(config: dict[str, Any]) -> list[str]:
    """Return what is against the rules in a configuration that has the right form."""
    jenkins = config["jenkins"]
    crumbs = jenkins["crumbIssuer"]["standard"]
    scripts = config["security"]["globalJobDslSecurityConfiguration"]
    rules = {
        "the controller runs builds itself": jenkins["numExecutors"] == 0,
        "the controller takes builds that name no label": jenkins["mode"] == "EXCLUSIVE",
        "a port is open for agents that call in": jenkins["slaveAgentPort"] == -1,
        "anybody can sign up": jenkins["securityRealm"]["local"]["allowsSignup"] is False,
        "a crumb is good from any address": not crumbs["excludeClientIPFromCrumb"],
        "job definitions run without a sandbox": scripts["useScriptSecurity"],
    }
    found = [name for name, kept in rules.items() if not kept]
    for path, key, value in values(config):
        if key in SECRET_KEYS and not SECRET_REFERENCE.fullmatch(str(value)):
            found.append(f"{path} is no reference to a secret file")
    return found + findings_of_grants(jenkins) + findings_of_agents(jenkins)


def findings_of_grants(jenkins: dict[str, Any]) -> list[str]:
    """Return what people may do that they must not."""
    matrix = jenkins["authorizationStrategy"].get("globalMatrix")
    if matrix is None:
        return ["no matrix says who may do what"]
    known = {user["id"] for user in jenkins["securityRealm"]["local"]["users"]}
    found = []
    for entry in matrix["entries"]:
        [(kind, grant)] = entry.items()
        name, allowed = grant["name"], set(grant["permissions"])
        if name == "anonymous":
            found.append("anonymous may do something")
        elif kind == "group" and (name != "authenticated" or not allowed <= READ_ONLY):
            found.append(f"group {name} may do more than read")
        elif kind == "user" and name not in known:
            found.append(f"user {name} does not exist")
        if "Overall/Administer" in allowed and name != "admin":
            found.append(f"{name} is an administrator")
    return found


def findings_of_agents(jenkins: dict[str, Any]) -> list[str]:
    """Return agents that could be somebody else's machine, or that no pipeline asks for."""
    found = []
    for node in jenkins["nodes"]:
        agent = node["permanent"]
        strategy = agent["launcher"]["ssh"]["sshHostKeyVerificationStrategy"]
        if list(strategy) != ["manuallyProvidedKeyVerificationStrategy"]:
            found.append(f"agent {agent['name']}: the host's key is not checked against a known one")
        if agent["labelString"].split()[0] not in AGENTS:
            found.append(f"agent {agent['name']} has no label that a pipeline asks for")
    return found


def test_the_configuration_has_the_form_of_what_jenkins_reads():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(casc(), SCHEMA)


def test_the_configuration_keeps_the_rules():
    assert findings(casc()) == []


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(config: dict[str, Any]) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        node: Any = config
        for part in parents:
            node = node[part]
        node[last] = value

    return apply


FIRST = "credentials/system/domainCredentials/0/credentials"
SSH = "jenkins/nodes/0/permanent/launcher/ssh"
ENTRIES = "jenkins/authorizationStrategy/globalMatrix/entries"
MUTATIONS = {
    "executors on the controller": change("jenkins/numExecutors", 2),
    "builds without a label on the controller": change("jenkins/mode", "NORMAL"),
    "an open port for agents": change("jenkins/slaveAgentPort", 50000),
    "signing up": change("jenkins/securityRealm/local/allowsSignup", True),
    "everybody may do anything": change("jenkins/authorizationStrategy", {"unsecured": {}}),
    "who is logged in may do anything": change(
        "jenkins/authorizationStrategy", {"loggedInUsersCanDoAnything": {"allowAnonymousRead": False}}
    ),
    "anonymous reads": change(f"{ENTRIES}/2/group", {"name": "anonymous", "permissions": ["Overall/Read"]}),
    "everybody builds": change(f"{ENTRIES}/2/group/permissions", ["Overall/Read", "Job/Build"]),
    "a second administrator": change(f"{ENTRIES}/1/user/permissions", ["Overall/Administer"]),
    "a user who does not exist": change(f"{ENTRIES}/1/user/name", "deploier"),
    "a password in the file": change("jenkins/securityRealm/local/users/0/password", "admin"),
    "a password with a default": change(
        "jenkins/securityRealm/local/users/0/password", "${jenkins_admin_password:-admin}"
    ),
    "a password from the environment": change(f"{FIRST}/1/usernamePassword/password", "${GIT_TOKEN}"),
    "a webhook in the file": change(f"{FIRST}/3/string/secret", "https://chat.internal/hooks/x"),
    "a key in the file": change(
        f"{FIRST}/0/basicSSHUserPrivateKey/privateKeySource/directEntry/privateKey", "-----BEGIN"
    ),
    "no sandbox for jobs": change("security/globalJobDslSecurityConfiguration/useScriptSecurity", False),
    "hosts that are not checked": change(
        f"{SSH}/sshHostKeyVerificationStrategy", {"nonVerifyingKeyVerificationStrategy": {}}
    ),
    "an agent that nobody asks for": change("jenkins/nodes/0/permanent/labelString", "bild"),
    "crumbs from anywhere": change("jenkins/crumbIssuer/standard/excludeClientIPFromCrumb", True),
    "no crumbs": lambda config: config["jenkins"].pop("crumbIssuer"),
    "a key that is none": change("jenkins/numExecutor", 0),
    "an agent for any job": change("jenkins/nodes/0/permanent/mode", "NORMAL"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_control_that_is_taken_away_is_found(name):
    config = copy.deepcopy(casc())
    MUTATIONS[name](config)
    refused = not jsonschema.Draft202012Validator(SCHEMA).is_valid(config)
    assert refused or findings(config), name


def test_secrets_and_settings_of_the_configuration_are_those_the_stack_gives():
    texts = " ".join(str(value) for _, _, value in values(casc()))
    named = set(re.findall(r"\$\{([A-Za-z_]+)", texts))
    service = STACK["services"]["jenkins"]
    secrets = {entry if isinstance(entry, str) else entry["target"] for entry in service["secrets"]}
    assert {name for name in named if name.islower()} == secrets
    assert {name for name in named if name.isupper()} <= set(service["environment"])


def test_the_jobs_stand_where_the_configuration_looks():
    [file] = [entry["file"] for entry in casc()["jobs"] if "file" in entry]
    dockerfile = (ROOT / "images/jenkins/Dockerfile").read_text()
    source, target = re.findall(r"^COPY (jenkins_config/jobs_dsl) (\S+)$", dockerfile, re.MULTILINE)[0]
    assert file.startswith(f"{target}/")
    assert (ROOT / source / file.removeprefix(f"{target}/")).exists()


def plugin_findings(text: str) -> list[str]:
    names, found = set(), []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z][a-z0-9-]*):([0-9][\w.-]*)", line)
        if match is None:
            found.append(f"not pinned: {line}")
        elif match[1] in names:
            found.append(f"twice: {match[1]}")
        else:
            names.add(match[1])
    return found


def test_plugins_are_pinned_and_unique():
    assert plugin_findings(PLUGINS.read_text()) == []
    assert plugin_findings("git:5.10.1\ngit:5.9\njunit\nmatrix-auth:latest\ncredentials: 1\n") == [
        "twice: git",
        "not pinned: junit",
        "not pinned: matrix-auth:latest",
        "not pinned: credentials: 1",
    ]


def test_what_the_configuration_and_the_pipelines_use_has_its_plugin():
    needed = {
        "configuration-as-code",
        "matrix-auth",  # globalMatrix
        "credentials",
        "ssh-credentials",  # basicSSHUserPrivateKey
        "plain-credentials",  # string
        "ssh-slaves",  # launcher: ssh
        "job-dsl",  # jobs
        "git",
        "workflow-aggregator",  # declarative pipelines, multibranch, input
        "credentials-binding",  # credentials(), withCredentials
        "junit",
        "timestamper",  # timestamps()
    }
    assert {
        line.partition(":")[0] for line in PLUGINS.read_text().splitlines() if not line.startswith("#")
    } == needed


def test_the_pipelines_use_credentials_and_agents_that_exist():
    config = casc()
    domains = config["credentials"]["system"]["domainCredentials"]
    known = {next(iter(entry.values()))["id"] for domain in domains for entry in domain["credentials"]}
    labels: set[str] = set()
    for node in config["jenkins"]["nodes"]:
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", node["permanent"]["labelString"])
        labels |= {" && ".join(sorted({text.split()[0], label})) for label in text.split()} | {
            text.split()[0]
        }
        assert node["permanent"]["launcher"]["ssh"]["credentialsId"] in known
    for name in NAMES:
        text = jenkinsfile(name).read_text()
        used = set(re.findall(r"credentials(?:Id: |\()'([^']+)'", text))
        assert used <= known, name
        for asked in re.findall(r"(?:label |node\()'([^']+)'", text):
            assert " && ".join(sorted(asked.split(" && "))) in labels, f"{name}: {asked}"
        submitters = set(re.findall(r"submitter '([^']+)'", text)[0].split(","))
        assert submitters == {user["id"] for user in config["jenkins"]["securityRealm"]["local"]["users"]}


@pytest.mark.skipif(bool(missing()), reason=missing() or "runs")
def test_there_is_a_job_for_each_sub_project(tmp_path):
    remote = "https://git.internal/mlops.git"
    path, wrong = CONFIG / "jobs_dsl/sub_projects.groovy", tmp_path / "jobs.groovy"
    wrong.write_text("multibranchPipelineJob('x') { factory { workflowFactory { scriptPath('y') } } }\n")
    made = run({}, {path: {"GIT_REMOTE": remote}, wrong: {}})["jobs"]
    scripts = {}
    for job in made[path]:
        assert (REPOSITORY / job["name"] / "Makefile").exists()
        source = job["settings"]["branchSources"]["git"]
        assert (source["remote"], source["credentialsId"]) == (remote, "git")
        scripts[job["name"]] = job["settings"]["factory"]["workflowBranchProjectFactory"]["scriptPath"]
    assert len(scripts) == len(made[path])
    assert set(scripts.values()) == {str(jenkinsfile(name).relative_to(REPOSITORY)) for name in NAMES}
    # And what is not known is refused.
    assert "workflowFactory" in made[wrong]["error"]


def test_the_image_is_built_on_the_pinned_controller_and_lints_clean():
    dockerfile = ROOT / "images/jenkins/Dockerfile"
    [default] = re.findall(r"^ARG JENKINS_IMAGE=(\S+)$", dockerfile.read_text(), re.MULTILINE)
    versions = (ROOT / "docker_compose_setups/versions.env").read_text()
    assert f"JENKINS_IMAGE={default}\n" in versions
    hadolint = Path(sys.executable).with_name("hadolint")
    ran = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
