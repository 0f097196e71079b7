"""Each script, twice, in a Debian root: the second run changes nothing, programs read what was written."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_engine.base_images import PYTHON
from server_tools import places

pytestmark = pytest.mark.engine
SCRIPTS = places.ROOT / "server_provisioning_scripts"
SETUP = {
    1: "setup_server1_dataproc.sh",
    2: "setup_server2_orchestration.sh",
    3: "setup_server3_serving.sh",
}
SETTINGS = "SERVER1_HOST=10.0.0.1\nSERVER2_HOST=10.0.0.2\nSERVER3_HOST=10.0.0.3\nADMIN_NETWORKS=10.9.0.0/16\n"
# Everything a script may write; what programs themselves change at any time (logs, caches) is not among it.
TREE = "/etc /opt /root /usr/local /var/lib/mlops /var/backups/mlops /var/log/mlops"
HASH = f"find {TREE} -printf '%M %U %G %p %l\\n' -type f -exec sha256sum {{}} + | sort | sha256sum"


class Machine:
    """A container that stands for a fresh Debian machine; systemd doesn't run in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        extra = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
        return subprocess.run(
            ["docker", "exec", *extra, self.name, "bash", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )

    def output(self, script: str) -> str:
        done = self.run(script)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def setup(self, server: int, arguments: str = "") -> subprocess.CompletedProcess[str]:
        return self.run(f"/provisioning/{SETUP[server]} {arguments}")


def start(settings: Path, apt_cache: str, *options: str, image: str = PYTHON) -> Machine:
    """Start a machine; what apt downloads is kept for the next one."""
    name = f"provisioning-{uuid.uuid4().hex[:8]}"
    subprocess.run(
        [
            "docker", "run", "--detach", "--rm", "--init", "--name", name, "--cap-add", "NET_ADMIN",
            "--volume", f"{SCRIPTS}:/provisioning:ro", "--volume", f"{settings}:/settings.env:ro",
            "--volume", apt_cache, *options, image, "sleep", "3600",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return Machine(name)


def stop(machine: Machine) -> None:
    subprocess.run(["docker", "rm", "--force", machine.name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("provisioning") / "settings.env"
    path.write_text(SETTINGS)
    path.chmod(0o644)
    path.parent.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def with_packages(settings: Path, apt_cache: str) -> Iterator[str]:
    """An image that has the packages and no configuration: installing them is proven once, on server 1."""
    machine = start(settings, apt_cache)
    report = machine.setup(1, "--settings /settings.env --dry-run").stdout
    names = " ".join(line.split(maxsplit=2)[2] for line in report.splitlines() if "would    packages" in line)
    machine.output(f"apt-get update -q && apt-get -q -y install --no-install-recommends {names}")
    image = f"{machine.name}:packages"
    subprocess.run(["docker", "commit", machine.name, image], check=True, capture_output=True)
    stop(machine)
    yield image
    subprocess.run(["docker", "rmi", "--force", image], check=True, capture_output=True)


@pytest.fixture(scope="module", params=[1, 2, 3])
def server(
    request: pytest.FixtureRequest, settings: Path, apt_cache: str
) -> Iterator[tuple[int, Machine, str]]:
    """Number, machine and report of the first run."""
    image = PYTHON if request.param == 1 else request.getfixturevalue("with_packages")
    machine = start(settings, apt_cache, image=image)
    machine.output(
        "mkdir -p /root/.ssh && echo 'ssh-ed25519 AAAA admin' > /root/.ssh/authorized_keys && "
        "rm -f /etc/apt/apt.conf.d/docker-clean"
    )
    dry = machine.setup(request.param, "--settings /settings.env --dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not machine.run("getent passwd mlops || test -e /etc/mlops").stdout, "a dry run changed something"
    done = machine.setup(request.param, "--settings /settings.env")
    assert done.returncode == 0, done.stdout + done.stderr
    yield request.param, machine, done.stdout
    stop(machine)


def counts(report: str) -> dict[str, str]:
    last = report.strip().splitlines()[-1]
    assert last.startswith("summary")
    return dict(word.split("=") for word in last.split()[1:])


def test_a_second_run_changes_nothing(server: tuple[int, Machine, str]):
    number, machine, first = server
    assert int(counts(first)["changed"]) > 20
    before = machine.output(HASH)
    second = machine.setup(number)  # the settings were kept
    assert second.returncode == 0, second.stderr
    assert counts(second.stdout)["changed"] == "0", second.stdout
    assert machine.output(HASH) == before


def test_what_could_not_be_started_is_named(server: tuple[int, Machine, str]):
    number, _, report = server
    for name in ("chrony", "nftables", "ssh", "docker", "unattended-upgrades", f"mlops-server{number}"):
        line = f"note     service {name}.service is configured and not started: systemd isn't running here"
        assert line in report


def test_account_and_folders(server: tuple[int, Machine, str]):
    _, machine, _ = server
    assert (
        machine.output("getent passwd mlops").strip()
        == "mlops:x:10001:10001::/var/lib/mlops:/usr/sbin/nologin"
    )
    assert machine.output("id -Gn mlops").split() == ["mlops"], "the account may not be in Docker's group"
    modes = machine.output(
        "stat -c '%a %U %G %n' /var/lib/mlops/servers/secrets /var/backups/mlops /etc/mlops"
    )
    assert modes.splitlines() == [
        "700 mlops mlops /var/lib/mlops/servers/secrets",
        "700 mlops mlops /var/backups/mlops",
        "755 root root /etc/mlops",
    ]


def test_every_program_reads_its_file(server: tuple[int, Machine, str]):
    number, machine, _ = server
    machine.output("nft -c -f /etc/nftables.conf")
    machine.output("chronyd -p -f /etc/chrony/chrony.conf")
    machine.output("logrotate --debug /etc/logrotate.d/mlops")
    machine.output("ssh-keygen -A >/dev/null && mkdir -p /run/sshd && sshd -t")
    effective = machine.output("sshd -T").splitlines()
    assert "passwordauthentication no" in effective
    assert "permitrootlogin without-password" in effective
    assert "port 22" in effective
    daemon = json.loads(machine.output("cat /etc/docker/daemon.json"))
    assert daemon["live-restore"] is True
    assert daemon["no-new-privileges"] is True
    assert daemon["ip"] == "127.0.0.1"
    upgrades = machine.output("apt-config dump")
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in upgrades
    origins = [line for line in upgrades.splitlines() if "Origins-Pattern::" in line]
    assert len(origins) == 1
    assert "Debian-Security" in origins[0]
    kernel = machine.output("cat /etc/sysctl.d/60-mlops.conf")
    wanted = {1: "vm.dirty_bytes", 2: "vm.overcommit_memory = 1", 3: "vm.max_map_count = 262144"}
    assert wanted[number] in kernel


def test_every_kernel_setting_exists(server: tuple[int, Machine, str]):
    _, machine, _ = server
    names = machine.output("sed -n 's/ = .*//p' /etc/sysctl.d/60-mlops.conf").split()
    assert len(names) > 15
    # A network namespace lacks some that the machine has, so the kernel of this machine is asked.
    missing = [name for name in names if not Path("/proc/sys", *name.split(".")).exists()]
    assert missing == []


def test_the_unit_is_read_by_systemd(server: tuple[int, Machine, str]):
    number, machine, _ = server
    machine.output("apt-get -q -y install --no-install-recommends systemd >/dev/null 2>&1")
    done = machine.run(f"systemd-analyze verify /etc/systemd/system/mlops-server{number}.service")
    assert done.returncode == 0, done.stderr
    assert "mlops-server" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def broken(settings: Path, apt_cache: str, with_packages: str) -> Iterator[Machine]:
    """A machine whose copy of the scripts can be broken."""
    machine = start(settings, apt_cache, image=with_packages)
    machine.output(
        "cp -r /provisioning /scripts && /scripts/setup_server1_dataproc.sh --settings /settings.env"
    )
    yield machine
    stop(machine)


def test_a_rule_that_nft_refuses_leaves_the_old_rules_in_place(broken: Machine):
    before = broken.output("sha256sum /etc/nftables.conf")
    broken.output("sed -i 's/policy drop;/policy dropp;/' /scripts/lib/firewall.sh")
    done = broken.run("/scripts/setup_server1_dataproc.sh")
    broken.output("cp /provisioning/lib/firewall.sh /scripts/lib/firewall.sh")
    assert done.returncode == 2
    assert "the new /etc/nftables.conf doesn't pass 'check_rules'; the old one stays" in done.stderr
    assert broken.output("sha256sum /etc/nftables.conf") == before
    assert "policy drop;" in broken.output("nft list chain inet mlops_firewall arriving")


@pytest.mark.parametrize(
    ("library", "right", "wrong", "file"),
    [
        ("system", "PermitTunnel no", "PermitTunnels no", "/etc/ssh/sshd_config.d/10-mlops.conf"),
        ("system", "makestep 1.0 3", "makesteps 1.0 3", "/etc/chrony/chrony.conf"),
        ("docker", '"live-restore": true,', '"live-restore": true', "/etc/docker/daemon.json"),
        ("system", "    weekly", "    weekly {", "/etc/logrotate.d/mlops"),
        ("system", "Autoclean\\(.*\\);", "Autoclean\\1", "/etc/apt/apt.conf.d/20auto-upgrades"),
    ],
)
def test_a_file_its_program_refuses_is_not_put_in_place(
    broken: Machine, library: str, right: str, wrong: str, file: str
):
    before = broken.output(f"sha256sum {file}")
    broken.output(f"sed -i 's/{right}/{wrong}/' /scripts/lib/{library}.sh")
    done = broken.run("/scripts/setup_server1_dataproc.sh")
    broken.output(f"cp /provisioning/lib/{library}.sh /scripts/lib/{library}.sh")
    assert done.returncode == 2, done.stdout
    assert f"the new {file} doesn't pass" in done.stderr
    assert broken.output(f"sha256sum {file}") == before


def test_what_somebody_changed_is_put_right_again(broken: Machine):
    broken.output(
        "echo '# mine' >> /etc/sysctl.d/60-mlops.conf; chmod 777 /var/lib/mlops/servers/secrets; "
        "rm /etc/tmpfiles.d/mlops-hugepages.conf"
    )
    done = broken.run("/scripts/setup_server1_dataproc.sh")
    assert counts(done.stdout)["changed"] == "3", done.stdout
    assert broken.output("stat -c %a /var/lib/mlops/servers/secrets").strip() == "700"


def test_without_any_key_passwords_stay_and_the_run_says_so(broken: Machine):
    done = broken.run("/scripts/setup_server1_dataproc.sh")
    assert "SSH keeps accepting passwords: nobody has an authorized key yet" in done.stdout
    assert "PasswordAuthentication yes" in broken.output("cat /etc/ssh/sshd_config.d/10-mlops.conf")


def test_fail2ban_reads_its_jail_when_it_is_wanted(broken: Machine):
    broken.output("sed 's/^FAIL2BAN=.*/FAIL2BAN=yes/' /etc/mlops/provisioning.env > /tmp/banning.env")
    done = broken.run("/scripts/setup_server1_dataproc.sh --settings /tmp/banning.env")
    assert done.returncode == 0, done.stderr
    assert "packages fail2ban python3-systemd" in done.stdout
    assert "['add', 'sshd', 'systemd']" in broken.output("fail2ban-client -d")


def test_a_key_that_is_not_dockers_is_refused(broken: Machine):
    broken.output(
        "apt-get -q -y install --no-install-recommends gnupg gpg-agent >/dev/null 2>&1 && "
        "gpg --batch --quiet --passphrase '' --quick-generate-key stranger ed25519 && "
        "gpg --armor --export stranger > /tmp/stranger.asc && "
        "sed 's/^DOCKER_SOURCE=.*/DOCKER_SOURCE=docker/; s,^DOCKER_APT_URI=.*,DOCKER_APT_URI=file:/mirror,; "
        "s,^DOCKER_APT_KEY=.*,DOCKER_APT_KEY=/tmp/stranger.asc,' "
        "/etc/mlops/provisioning.env > /tmp/docker.env"
    )
    done = broken.run("/scripts/setup_server1_dataproc.sh --settings /tmp/docker.env")
    assert done.returncode == 2, done.stdout
    assert "not Docker's (9DC858229FC7DD38854AE2D88D81803C0EBFCD88)" in done.stderr
    assert broken.run("test -e /etc/apt/sources.list.d/docker.list").returncode == 1
    # The refused run had kept its settings already; put the first ones back.
    broken.output("/scripts/setup_server1_dataproc.sh --settings /settings.env")


def test_an_ordinary_user_is_refused(broken: Machine):
    done = broken.run("setpriv --reuid=65534 --clear-groups /scripts/setup_server1_dataproc.sh")
    assert done.returncode == 2
    assert "may not do this: run it as root" in done.stderr


def test_ids_that_belong_to_somebody_else_are_refused(broken: Machine):
    broken.output("sed 's/^MLOPS_UID=.*/MLOPS_UID=1/' /etc/mlops/provisioning.env > /tmp/other.env")
    done = broken.run("/scripts/setup_server1_dataproc.sh --settings /tmp/other.env")
    assert done.returncode == 2
    assert "user mlops has id 10001, not 1" in done.stderr


def test_another_system_is_refused(settings: Path, apt_cache: str, tmp_path: Path):
    release = tmp_path / "os-release"
    release.write_text('ID=ubuntu\nVERSION_ID="24.04"\n')
    machine = start(settings, apt_cache, "--volume", f"{release}:/etc/os-release:ro")
    done = machine.setup(1, "--settings /settings.env")
    stop(machine)
    assert done.returncode == 2
    assert "this is ubuntu 24.04: the servers run Debian 12 or newer" in done.stderr
    assert done.stdout == ""
