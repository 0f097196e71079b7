"""What the Compose files must be before any engine sees them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from server_tools import places, policy, secrets, server_settings
from server_tools.controls import is_job, memory_bytes

SETUPS = places.SETUPS
COMPOSE_FILES = sorted({*SETUPS.glob("*.yml"), *SETUPS.glob("*/*.yml")} - {SETUPS / policy.WAIVERS})
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z][A-Z0-9_]*)([:?+-]?)([^}]*)\}")
VERSIONS = server_settings.parse(places.VERSIONS.read_text(encoding="utf-8"))
TEMPLATE = places.SETTINGS_TEMPLATE.read_text(encoding="utf-8")
# Of the tool and the backup, which keep their own page of settings.
STACKS = {
    "airflow", "feature_store_backend", "jenkins", "mlflow_server", "model_services", "monitoring_stack",
    "object_store", "spark", "streaming",
}  # fmt: skip


def text(path: Path) -> str:
    """Return a file without its comments."""
    return re.sub(r"(^|\s)#.*$", "", path.read_text(encoding="utf-8"), flags=re.M)


def test_a_server_is_a_list_of_includes() -> None:
    servers = sorted(SETUPS.glob("server?.yml"))
    assert [path.name for path in servers] == ["server1.yml", "server2.yml", "server3.yml"]
    for path in servers:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert set(document) == {"include"}
        assert len(set(document["include"])) == len(document["include"]), f"{path.name} includes a file twice"


def test_every_documented_stack_stands_alone() -> None:
    alone = {path.parent.name for path in policy.files(SETUPS)}
    assert alone >= STACKS
    environment = policy.sample_environment()
    for stack in ("object_store", "jenkins"):
        assert policy.resolve(SETUPS / stack / "docker-compose.yml", environment)["services"]


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: str(path.relative_to(SETUPS)))
def test_images_are_pinned_in_one_place(path: Path) -> None:
    for image in re.findall(r"^ +image: (\S.*)$", text(path), re.M):
        own = re.fullmatch(r"mlops/[a-z-]+:\$\{MLOPS_VERSION:-dev\}", image)
        pinned = re.fullmatch(r"\$\{([A-Z_]+_IMAGE):\?see versions\.env\}", image)
        assert own or (pinned and pinned[1] in VERSIONS), f"{path.name}: {image}"


def test_every_pin_is_used_and_names_a_version() -> None:
    used = "\n".join(text(path) for path in COMPOSE_FILES)
    own = "\n".join(path.read_text(encoding="utf-8") for path in places.ROOT.glob("images/*/Dockerfile"))
    for name, image in VERSIONS.items():
        assert f"${{{name}:?" in used or f"ARG {name}={image}\n" in own, f"nothing runs {name}"
        assert re.search(r":v?\d+\.\d+", image), image


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: str(path.relative_to(SETUPS)))
def test_ports_are_bound_to_an_address_of_the_settings(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for service in (content.get("services") or {}).values():
        for port in service.get("ports") or []:
            assert re.fullmatch(
                r"\$\{(SERVER[123]_HOST:\?run make secrets|(UI|API)_BIND:-127\.0\.0\.1)\}:\d+:\d+", port
            )


def test_every_secret_of_a_stack_is_generated_or_given() -> None:
    used = {name for path in COMPOSE_FILES for name in re.findall(r"/secrets/([\w.-]+)\"", text(path))}
    assert used <= set(secrets.NAMES)
    # What no container reads is read by people, from the folder.
    assert set(secrets.NAMES) - used <= {
        "jenkins_agent_password", "page_password", "airflow_admin_password", "backup_age_identity",
        "s3_volume_signing_key", "s3_filer_signing_key",
    }  # fmt: skip


def test_secrets_that_a_service_asks_for_are_declared_beside_it() -> None:
    for path in policy.files(SETUPS):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        declared = set(content.get("secrets") or {})
        for service in (content.get("services") or {}).values():
            asked = {s if isinstance(s, str) else s["source"] for s in service.get("secrets") or []}
            assert asked <= declared, path


def test_every_setting_of_the_stacks_is_documented_and_used() -> None:
    used = {match[1] for path in COMPOSE_FILES for match in VARIABLE.finditer(text(path))}
    documented = server_settings.documented(TEMPLATE)
    assert {name for name in used if not name.endswith("_IMAGE")} - documented == set()
    manifest = yaml.safe_load((places.ROOT / "platform_config_templates" / "manifest.yml").read_text())
    tools = {"COMPOSE_PROJECT", "MLOPS_SERVERS_DIR"}
    assert documented - used - set(manifest["settings"]) - tools == set()


def test_a_documented_default_is_the_one_that_counts() -> None:
    shown = dict(re.findall(r"^#([A-Z][A-Z0-9_]*)=(.*)$", TEMPLATE, re.M))
    for path in COMPOSE_FILES:
        for name, operator, default in VARIABLE.findall(text(path)):
            if operator == ":" and default.startswith("-") and name in shown:
                assert default[1:] == shown[name], f"{path.name}: {name}"


def test_what_must_be_set_has_no_default_and_says_so() -> None:
    environment = policy.sample_environment()
    del environment["SERVER2_HOST"]
    with pytest.raises(policy.PolicyError, match=r"SERVER2_HOST.*run make secrets"):
        policy.resolve(SETUPS / "server1.yml", environment)


def test_jenkins_gets_every_setting_and_secret_that_its_configuration_reads() -> None:
    jenkins = policy.resolve(SETUPS / "jenkins" / "docker-compose.yml", policy.sample_environment())
    service = jenkins["services"]["jenkins"]
    given = set(service["environment"]) | {secret["source"] for secret in service["secrets"]}
    folder = places.ROOT / "jenkins_config" / "casc"
    configuration = "".join(
        re.sub(r"^\s*#.*$", "", path.read_text(encoding="utf-8"), flags=re.M)
        for path in folder.glob("*.yaml")
    )
    asked = set(re.findall(r"(?<!\^)\$\{([A-Za-z_]+)(?::-[^}]*)?\}", configuration))
    assert asked - given == set()


def test_sparks_jobs_unpack_their_libraries_where_they_may_be_loaded() -> None:
    """A volume may hold programs, the memory behind /tmp may not; executors inherit the environment."""
    spark = policy.resolve(SETUPS / "spark" / "docker-compose.yml", policy.sample_environment())
    worker = spark["services"]["spark-worker"]
    (folder,) = re.findall(r"-Djava\.io\.tmpdir=(\S+)", worker["environment"]["JAVA_TOOL_OPTIONS"])
    volumes = {mount["target"] for mount in worker["volumes"] if mount["type"] == "volume"}
    assert folder in volumes
    assert folder not in {entry.partition(":")[0] for entry in worker["tmpfs"]}
    assert all("noexec" in entry for entry in worker["tmpfs"])


def test_the_sizing_page_sums_the_limits_that_stand() -> None:
    sums = []
    for number in "123":
        services = policy.resolve(SETUPS / f"server{number}.yml", policy.sample_environment())["services"]
        run_on = [each for each in services.values() if not is_job(each) and "profiles" not in each]
        sums.append(f"{sum(map(memory_bytes, run_on)) / 2**30:.1f} GiB")
    page = (places.REPOSITORY / "docs/operations.md").read_text(encoding="utf-8")
    assert "server 1: {}, 2: {}, 3: {} ".format(*sums) in page


def test_optional_parts_alone_have_a_profile() -> None:
    server3 = policy.resolve(SETUPS / "server3.yml", policy.sample_environment())
    profiles = {
        name: service["profiles"] for name, service in server3["services"].items() if "profiles" in service
    }
    assert profiles == {"loki": ["loki"], "loki-volumes": ["loki"], "alloy": ["loki"]}


def test_the_scripts_of_the_stacks_are_sound() -> None:
    shellcheck = shutil.which("shellcheck") or str(Path(sys.executable).with_name("shellcheck"))
    scripts = sorted(SETUPS.glob("*/**/*.sh"))
    assert scripts
    done = subprocess.run([shellcheck, *map(str, scripts)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
