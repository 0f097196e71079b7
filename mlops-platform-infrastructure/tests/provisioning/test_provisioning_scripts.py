"""The provisioning scripts without a machine: lint, refusals, settings, the rules they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from server_tools import places

SCRIPTS = places.ROOT / "server_provisioning_scripts"
SETUP = {
    1: SCRIPTS / "setup_server1_dataproc.sh",
    2: SCRIPTS / "setup_server2_orchestration.sh",
    3: SCRIPTS / "setup_server3_serving.sh",
}
SETTINGS = """\
# three servers
SERVER1_HOST=10.0.0.1
SERVER2_HOST='10.0.0.2'
SERVER3_HOST="10.0.0.3"
"""


def run(
    server: int, settings: str, *arguments: str, tmp_path: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "settings.env"
    file.write_text(settings)
    return subprocess.run(
        [SETUP[server], "--settings", file, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        env={"PATH": os.environ["PATH"], **environment},
    )


def ports() -> list[tuple[int, int, str, str]]:
    """Server, port, callers and service of each line of ports.conf."""
    lines = (SCRIPTS / "lib" / "ports.conf").read_text().splitlines()
    split = [line.split(maxsplit=3) for line in lines if not line.startswith("#")]
    return [(int(server), int(port), callers, service) for server, port, callers, service in split]


def accepted(rules: str) -> set[tuple[str, int]]:
    return {
        (caller, int(port))
        for caller, port in re.findall(r"saddr (\S+) tcp dport (\d+) counter accept", rules)
    }


def shellcheck(folder: Path, *scripts: str) -> subprocess.CompletedProcess[str]:
    checker = Path(sys.executable).with_name("shellcheck")
    return subprocess.run(
        [checker, "--check-sourced", "--external-sources", "--severity", "style", *scripts],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


def test_shellcheck_finds_nothing():
    # The three scripts differ in four values: their libraries are read once.
    done = shellcheck(SCRIPTS, SETUP[1].name)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_each_library_is_read_by_shellcheck_through_the_scripts(tmp_path: Path):
    copy = tmp_path / "lib"
    copy.mkdir()
    for path in (SCRIPTS / "lib").iterdir():
        (copy / path.name).write_text(path.read_text())
    (copy / "docker.sh").write_text((copy / "docker.sh").read_text() + "\nbroken() { rm -rf $1/*; }\n")
    script = tmp_path / SETUP[1].name
    script.write_text(SETUP[1].read_text())
    assert "SC2086" in shellcheck(tmp_path, script.name).stdout


def test_the_scripts_are_strict_and_differ_in_what_they_set_only():
    rest = set()
    for path in SETUP.values():
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert lines[0] == "set -Eeuo pipefail"
        rest.add(tuple(lines[lines.index(next(each for each in lines if each.startswith(". "))) :]))
    assert len(rest) == 1


@pytest.mark.parametrize("server", [1, 2, 3])
def test_the_rules_accept_what_the_table_says_and_nothing_else(server: int, tmp_path: Path):
    settings = (
        SETTINGS + "API_CLIENT_NETWORKS=10.8.0.0/16 fd12::/64\nCLUSTER_NETWORKS=10.77.0.0/16 fd77::/64\n"
    )
    done = run(server, settings, "--rules", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    addresses = {"1": ["10.0.0.1"], "2": ["10.0.0.2"], "3": ["10.0.0.3"], "-": []}
    addresses["clients"] = ["10.8.0.0/16", "fd12::/64"]
    addresses["cluster"] = ["10.77.0.0/16", "fd77::/64"]
    expected = {
        (address, port)
        for where, port, callers, _ in ports()
        if where == server
        for caller in callers.split(",")
        for address in addresses[caller]
    }
    assert accepted(done.stdout) == expected
    assert "policy drop" in done.stdout
    assert "flush ruleset" not in done.stdout


def test_without_client_networks_only_servers_may_call_the_services(tmp_path: Path):
    rules = run(3, SETTINGS, "--rules", tmp_path=tmp_path).stdout
    logs = {("10.0.0.1", 9200), ("10.0.0.2", 9200)}
    assert accepted(rules) - logs == {("10.0.0.2", 8001), ("10.0.0.2", 8002), ("10.0.0.2", 8003)}


def test_a_cluster_reaches_what_its_manifests_name_and_only_where_it_is_named(tmp_path: Path):
    manifests = (
        places.ROOT / "kubernetes_deployments/components/data_servers/prod/data_servers.yaml"
    ).read_text()
    wanted = {
        (int(document["metadata"]["name"].removeprefix("server")), port["port"])
        for document in yaml.safe_load_all(manifests)
        if document["kind"] == "Service"
        for port in document["spec"]["ports"]
    }
    assert (2, 6379) in wanted
    settings = SETTINGS + "CLUSTER_NETWORKS=10.77.0.0/16\n"
    opened, closed = (
        {
            (server, port)
            for server in SETUP
            for caller, port in accepted(run(server, text, "--rules", tmp_path=tmp_path).stdout)
            if caller not in {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
        }
        for text in (settings, SETTINGS)
    )
    assert (opened, closed) == (wanted, set())


@pytest.mark.parametrize(
    ("networks", "cause"),
    [
        ("10.77.0.0/33", "'10.77.0.0/33' in CLUSTER_NETWORKS is no network"),
        ("10.77.0.0/16 pods.example.org", "'pods.example.org' in CLUSTER_NETWORKS is no network"),
        ("10.77.0.0/16,10.78.0.0/16", "in CLUSTER_NETWORKS is no network"),
        ("10.77.0.0/16 0.0.0.0/0", "'0.0.0.0/0' in CLUSTER_NETWORKS is everybody"),
        ("::/0", "'::/0' in CLUSTER_NETWORKS is everybody"),
    ],
)
def test_a_cluster_that_cannot_be_meant_is_refused_by_its_entry(networks: str, cause: str, tmp_path: Path):
    done = run(1, SETTINGS + f"CLUSTER_NETWORKS={networks}\n", "--rules", tmp_path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert cause in done.stderr


def test_ssh_is_paced_for_everybody_and_limited_to_named_networks(tmp_path: Path):
    everybody = run(1, SETTINGS, "--rules", tmp_path=tmp_path).stdout
    assert re.search(r"chain ssh \{\n(.*\n){2}\s+goto ssh_paced\n", everybody)
    named = run(
        1, SETTINGS + "ADMIN_NETWORKS=10.9.0.0/16\nSSH_PORT=2222\n", "--rules", tmp_path=tmp_path
    ).stdout
    assert "ip saddr 10.9.0.0/16 goto ssh_paced\n        counter drop" in named
    assert "tcp dport 2222 goto ssh" in named


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("SERVER2_HOST=", "SERVER2_HOST is not set"),
        ("SERVER2_HOST=db.example.org", "an IP address is needed, not a name"),
        ("SERVER2_HOST=10.0.0.256", "an IP address is needed"),
        ("ADMIN_NETWORKS=10.0.0.0/33", "no network"),
        ("SSH_PORT=ssh", "SSH_PORT"),
        ("SSH_PROT=22", "no setting is called SSH_PROT"),
        ("MLOPS_UID=0", "don't run as root"),
        ("DOCKER_SOURCE=snap", "debian or docker"),
        ("DOCKER_SOURCE=docker", "DOCKER_APT_URI"),
        ("NTP_SERVERS=a;reboot", "NTP_SERVERS"),
        ("MLOPS_REPOSITORY=/opt/x y", "MLOPS_REPOSITORY"),
        ("REBOOT_TIME=25:00", "REBOOT_TIME"),
        ("echo hello", "no KEY=value"),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused_by_name(change: str, cause: str, tmp_path: Path):
    done = run(1, SETTINGS + change + "\n", "--rules", tmp_path=tmp_path)
    assert done.returncode == 2
    assert cause in done.stderr
    assert done.stdout == ""


def test_settings_are_read_and_never_executed(tmp_path: Path):
    marker = tmp_path / "executed"
    run(1, SETTINGS + f"NTP_SERVERS=$(touch {marker})\n", "--rules", tmp_path=tmp_path)
    assert not marker.exists()


@pytest.mark.skipif(
    "ID=debian" not in Path("/etc/os-release").read_text(), reason="the scripts refuse others than Debian"
)
def test_an_administrator_is_not_locked_out(tmp_path: Path):
    settings = SETTINGS + "ADMIN_NETWORKS=10.9.0.0/16\n"
    outside = run(1, settings, "--dry-run", tmp_path=tmp_path, SSH_CONNECTION="192.0.2.7 5000 10.0.0.1 22")
    assert outside.returncode == 2
    assert "192.0.2.7, which is not in ADMIN_NETWORKS" in outside.stderr
    other_port = run(
        1, settings, "--dry-run", tmp_path=tmp_path, SSH_CONNECTION="10.9.0.7 5000 10.0.0.1 2222"
    )
    assert "connected to port 2222" in other_port.stderr
    inside = run(1, settings, "--dry-run", tmp_path=tmp_path, SSH_CONNECTION="10.9.0.7 5000 10.0.0.1 22")
    assert inside.returncode == 0, inside.stderr


def test_missing_settings_are_explained():
    done = subprocess.run(
        [SETUP[1], "--settings", "/nonexistent", "--rules"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "copy settings.env.example" in done.stderr


def published() -> set[tuple[int, int]]:
    """Server and port of everything that Compose publishes on a server's own address."""
    found = set()
    for server in (1, 2, 3):
        waiting = [places.SETUPS / f"server{server}.yml"]
        while waiting:
            path = waiting.pop()
            content = yaml.safe_load(path.read_text())
            for entry in content.get("include") or []:
                named = entry if isinstance(entry, str) else entry["path"]
                waiting += [path.parent / each for each in ([named] if isinstance(named, str) else named)]
            for service in (content.get("services") or {}).values():
                for port in service.get("ports") or []:
                    match = re.match(r"\$\{SERVER(\d)_HOST[^}]*\}:(\d+):", str(port))
                    if match:
                        assert int(match[1]) == server, (
                            f"{path} publishes on another server's address: {port}"
                        )
                        found.add((server, int(match[2])))
    return found


def test_the_firewall_knows_every_port_that_compose_publishes_and_no_other():
    known = {(server, port) for server, port, _, _ in ports()}
    bound_by_setting = {(3, 7860), (3, 8001), (3, 8002), (3, 8003)}  # UI_BIND and API_BIND
    assert known - bound_by_setting == published()


def test_the_documents_table_is_the_firewalls():
    text = (places.ROOT / "docs" / "provisioning.md").read_text()
    rows = re.findall(r"^\| server (\d) \| (\d+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    shown = [
        (int(server), int(port), callers.strip(), service.strip()) for server, port, callers, service in rows
    ]
    names = {
        "1": "server 1",
        "2": "server 2",
        "3": "server 3",
        "clients": "`API_CLIENT_NETWORKS`",
        "cluster": "`CLUSTER_NETWORKS`",
    }
    expected = [
        (
            server,
            port,
            ", ".join(names.get(each, "its own containers") for each in callers.split(",")),
            service,
        )
        for server, port, callers, service in ports()
    ]
    assert shown == expected
