"""What Terraform itself can say without a provider: formatting, loading, the offline plan, modules' tests.

Skipped with a reason where there is no `terraform` (REQUIRE_TERRAFORM=1 makes that a failure).
"""

from __future__ import annotations

import base64
import functools
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hcl_files import TERRAFORM
from terraform_policy import PURE

ROOT = TERRAFORM.parent
PROVISIONING = ROOT / "server_provisioning_scripts"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZES = ("dev", "prod")
CLUSTER = "10.77.0.0/16"


@pytest.fixture(scope="module", autouse=True)
def terraform_is_there():
    if shutil.which("terraform") is None:
        if os.environ.get("REQUIRE_TERRAFORM"):
            pytest.fail("terraform is not on the PATH")
        pytest.skip("terraform is not on the PATH, and no package index has it")


def terraform(folder: Path, data: Path, *arguments: str) -> str:
    """Run Terraform in `folder` with its working files in `data`, unable to ask anything of a network."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(data),
        "TF_DATA_DIR": str(data / "data"),
        "TF_IN_AUTOMATION": "1",
        "CHECKPOINT_DISABLE": "1",
        "TF_CLI_CONFIG_FILE": os.devnull,
        "https_proxy": "http://127.0.0.1:1",
    }
    done = subprocess.run(
        ["terraform", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"terraform {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
    return done.stdout


@functools.cache
def planned(size: str, data: Path) -> dict[str, Any]:
    folder, plan = TERRAFORM / "offline_plan", data / f"{size}.tfplan"
    terraform(folder, data, "init", "-backend=false", "-input=false")
    terraform(
        folder,
        data,
        "plan",
        "-input=false",
        f"-out={plan}",
        f"-state={data / 'state'}",
        f"-var-file={TERRAFORM / 'environments' / size / 'plan.auto.tfvars'}",
        f"-var=environment={size}",
        f"-var=commit={COMMIT}",
        # No environment has a cluster of its own; the table's callers are all there in the tests.
        f"-var=cluster_networks={json.dumps([CLUSTER])}",
        "-var=repository_url=https://git.example.org/platform.git",
    )
    outputs = json.loads(terraform(folder, data, "show", "-json", str(plan)))["planned_values"]["outputs"]
    return {name: output["value"] for name, output in outputs.items()}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = tmp_path_factory.mktemp("terraform")
    return lambda size: planned(size, data)


def test_files_are_formatted(tmp_path: Path):
    terraform(TERRAFORM, tmp_path, "fmt", "-check", "-recursive")


@pytest.mark.parametrize("size", SIZES)
def test_an_environment_loads_with_all_its_modules(size: str, tmp_path: Path):
    """Loading finds unknown blocks, calls and references to nowhere; validating would need the provider."""
    loaded = terraform(TERRAFORM / "environments" / size, tmp_path, "get", "-no-color")
    assert {
        "platform.postgresql_server",
        "platform.redis_cluster",
        "platform.airflow_on_docker.instance",
    } <= set(re.findall(r"^- (\S+) in", loaded, re.MULTILINE))


@pytest.mark.parametrize("folder", sorted(PURE))
def test_what_needs_no_provider_is_valid(folder: str, tmp_path: Path):
    terraform(TERRAFORM / folder, tmp_path, "init", "-backend=false", "-input=false")
    assert json.loads(terraform(TERRAFORM / folder, tmp_path, "validate", "-json"))["valid"] is True


@pytest.mark.parametrize("folder", sorted(p.parent.parent.name for p in TERRAFORM.rglob("*.tftest.hcl")))
def test_modules_pass_their_own_tests(folder: str, tmp_path: Path):
    module = TERRAFORM / "modules" / folder
    terraform(module, tmp_path, "init", "-backend=false", "-input=false")
    said = terraform(module, tmp_path, "test", "-no-color")
    count = re.search(r"Success! (\d+) passed, 0 failed", said)
    assert count is not None
    assert int(count[1]) == len(
        re.findall(r"^run ", next(module.rglob("*.tftest.hcl")).read_text(), re.MULTILINE)
    )


def table() -> set[tuple[str, int, str]]:
    """(server, port, caller) of the servers' firewalls, read by a way of its own."""
    lines = (PROVISIONING / "lib" / "ports.conf").read_text().splitlines()
    entries = [line.split(maxsplit=3) for line in lines if line.strip() and not line.startswith("#")]
    return {
        (server, int(port), caller)
        for server, port, callers, _ in entries
        for caller in callers.split(",")
        if caller != "-"
    }


@pytest.mark.parametrize("size", SIZES)
def test_the_clouds_firewall_is_the_servers_own(size: str, plan: Any):
    servers = plan(size)["servers"]
    callers = {f"{server['address']}/32": number for number, server in servers.items()} | {CLUSTER: "cluster"}
    opened = {
        (number, rule["port"], callers.get(rule["network"], "clients"))
        for number, server in servers.items()
        for rule in server["ingress"].values()
    }
    assert opened == table()
    assert len(opened) > 15


@pytest.mark.parametrize("size", SIZES)
def test_descriptions_are_what_the_cloud_accepts(size: str, plan: Any):
    for server in plan(size)["servers"].values():
        for rule in [*server["ingress"].values(), *server["egress"].values()]:
            assert re.fullmatch(r"[A-Za-z0-9. _:/()#,@\[\]+=&;{}!$*-]{1,255}", rule["description"])


@pytest.mark.parametrize("size", SIZES)
def test_kubernetes_knows_the_data_servers_by_these_addresses(size: str, plan: Any):
    text = (ROOT / f"kubernetes_deployments/components/data_servers/{size}/data_servers.yaml").read_text()
    slices = {d["metadata"]["name"]: d for d in yaml.safe_load_all(text) if d["kind"] == "EndpointSlice"}
    addresses = {name: each["endpoints"][0]["addresses"] for name, each in slices.items()}
    servers = plan(size)["servers"]
    assert addresses == {f"server{number}": [servers[number]["address"]] for number in ("1", "2")}


def test_environments_do_not_overlap(plan: Any):
    networks = [
        ipaddress.ip_network(f"{plan(size)['servers']['1']['address']}/24", strict=False) for size in SIZES
    ]
    assert not networks[0].overlaps(networks[1])


def files_of(text: str) -> dict[str, str]:
    config = yaml.safe_load(text)
    return {each["path"]: base64.b64decode(each["content"]).decode() for each in config["write_files"]}


@pytest.mark.parametrize("number", ["1", "2", "3"])
@pytest.mark.parametrize("size", SIZES)
def test_the_first_start_is_a_cloud_config_whose_script_is_clean(
    size: str, number: str, plan: Any, tmp_path: Path
):
    text = plan(size)["user_data"][number]
    assert text.startswith("#cloud-config\n")
    written = files_of(text)
    script = tmp_path / "set_up_server.sh"
    script.write_text(written["/root/set_up_server.sh"])
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, "--severity=style", script], check=True)
    called = re.search(r"server_provisioning_scripts/(\S+)\"", script.read_text())
    assert called is not None
    assert os.access(PROVISIONING / called[1], os.X_OK)
    assert f"COMMIT={COMMIT}" in script.read_text()


@pytest.mark.parametrize("size", SIZES)
def test_the_settings_are_what_the_provisioning_accepts(size: str, plan: Any, tmp_path: Path):
    settings = tmp_path / "provisioning.env"
    settings.write_text(files_of(plan(size)["user_data"]["1"])["/root/provisioning.env"])
    checked = subprocess.run(
        [
            "bash",
            "-c",
            '. lib/report.sh; . lib/settings.sh; read_settings "$1"; check_settings; settings_text',
            "-",
            settings,
        ],
        cwd=PROVISIONING,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"SERVER2_HOST='{plan(size)['servers']['2']['address']}'" in checked.stdout
    assert "DOCKER_DATA_ROOT='/srv/docker'" in checked.stdout


@pytest.mark.parametrize("size", SIZES)
def test_the_first_settings_are_those_of_the_servers_template(size: str, plan: Any):
    template = (ROOT / "docker_compose_setups/servers.env.template").read_text()
    known = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", template, re.MULTILINE))
    for number in ("1", "2", "3"):
        text = files_of(plan(size)["user_data"][number])["/root/servers.env"]
        settings = dict(line.split("=", 1) for line in text.splitlines())
        assert settings.keys() <= known
        assert settings["SERVER1_HOST"] == plan(size)["servers"]["1"]["address"]
    assert {"AIRFLOW_PARALLELISM", "AIRFLOW_SCHEDULER_MEMORY"} <= dict(
        line.split("=", 1)
        for line in files_of(plan(size)["user_data"]["2"])["/root/servers.env"].splitlines()
    ).keys()


def test_an_environment_that_makes_no_sense_is_refused(tmp_path: Path):
    folder = TERRAFORM / "offline_plan"
    terraform(folder, tmp_path, "init", "-backend=false", "-input=false")
    with pytest.raises(AssertionError, match="never all of the Internet"):
        terraform(
            folder,
            tmp_path,
            "plan",
            "-input=false",
            "-no-color",
            f"-state={tmp_path / 'state'}",
            f"-var-file={TERRAFORM / 'environments/dev/plan.auto.tfvars'}",
            "-var=environment=dev",
            f"-var=commit={COMMIT}",
            "-var=repository_url=https://git.example.org/platform.git",
            '-var=api_client_networks=["0.0.0.0/0"]',
        )
