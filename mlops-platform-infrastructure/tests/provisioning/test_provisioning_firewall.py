"""The rules at work: packets between network namespaces that stand for servers, strangers and containers."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_engine.base_images import PYTHON
from server_tools import places

pytestmark = pytest.mark.engine
SCRIPTS = places.ROOT / "server_provisioning_scripts"
SETTINGS = """\
SERVER1_HOST=10.0.0.1
SERVER2_HOST=10.0.0.2
SERVER3_HOST=10.0.0.3
ADMIN_NETWORKS=10.0.0.8
CLUSTER_NETWORKS=10.0.0.64/26
"""
# server1 has a container (172.30.0.2) behind br-stack, published as Docker does, by rewriting.
# Processes listen on server1 itself (22, 5432, 9999) and in the container (9092, 9998).
NETWORK = """
set -e
for name in server1 server2 server3 stranger admin pod container; do
    ip netns add $name; ip -n $name link set lo up
done
ip link add lan type bridge; ip link set lan up
n=0
for pair in server1:10.0.0.1 server2:10.0.0.2 server3:10.0.0.3 stranger:10.0.0.9 admin:10.0.0.8 \\
    pod:10.0.0.77; do
    name=${pair%%:*}; n=$((n + 1))
    ip link add port$n type veth peer name eth0 netns $name
    ip link set port$n master lan up
    ip -n $name addr add ${pair##*:}/24 dev eth0; ip -n $name link set eth0 up
done
ip -n server1 link add br-stack type bridge; ip -n server1 addr add 172.30.0.1/24 dev br-stack
ip -n server1 link add vcontainer type veth peer name eth0 netns container
ip -n server1 link set vcontainer master br-stack up; ip -n server1 link set br-stack up
ip -n container addr add 172.30.0.2/24 dev eth0; ip -n container link set eth0 up
ip -n container route add default via 172.30.0.1
ip -n stranger route add 172.30.0.0/24 via 10.0.0.1
ip netns exec server1 sysctl -qw net.ipv4.ip_forward=1
ip netns exec server1 nft -f - <<END
table ip published {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        iifname != "br-stack" fib daddr type local tcp dport { 9092, 9998 } dnat to 172.30.0.2
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ip saddr 172.30.0.0/24 oifname != "br-stack" masquerade
    }
}
END
cat > /listen.py <<'END'
import select, socket, sys
listeners = [socket.create_server(("0.0.0.0", int(port))) for port in sys.argv[1:]]
while True:
    for listener in select.select(listeners, [], [])[0]:
        listener.accept()[0].close()
END
cat > /connect.py <<'END'
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()
except TimeoutError:
    sys.exit("dropped")
except ConnectionRefusedError:
    sys.exit("refused")
END
ip netns exec server1 python3 /listen.py 22 5432 9999 & ip netns exec container python3 /listen.py 9092 9998 &
for name in server2 stranger; do ip netns exec $name python3 /listen.py 80 & done
sleep 1
"""


class Lab:
    """A container with the namespaces above."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, script: str, *, detach: bool = False) -> subprocess.CompletedProcess[str]:
        command = ["docker", "exec", *(["--detach"] if detach else []), self.name, "bash", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def output(self, script: str) -> str:
        done = self.run(script)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def connect(self, source: str, address: str, port: int) -> str:
        done = self.run(f"ip netns exec {source} python3 /connect.py {address} {port}")
        return done.stderr.strip() or "connected"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, apt_cache: str) -> Iterator[Lab]:
    """The namespaces, without any rule of ours."""
    settings = tmp_path_factory.mktemp("firewall") / "settings.env"
    settings.write_text(SETTINGS)
    settings.chmod(0o644)
    settings.parent.chmod(0o755)
    name = f"provisioning-{uuid.uuid4().hex[:8]}"
    subprocess.run(
        [
            "docker", "run", "--detach", "--rm", "--init", "--name", name,
            "--cap-add", "NET_ADMIN", "--cap-add", "SYS_ADMIN",
            "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
            "--volume", f"{SCRIPTS}:/provisioning:ro", "--volume", f"{settings}:/settings.env:ro",
            "--volume", apt_cache, PYTHON, "sleep", "3600",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    lab = Lab(name)
    lab.output("apt-get update -q && apt-get install -q -y --no-install-recommends iproute2 nftables procps")
    lab.run(f"mount -t tmpfs none /run && ({NETWORK}) && touch /ready; sleep 3600", detach=True)
    for _ in range(100):
        if lab.run("test -e /ready").returncode == 0:
            break
        time.sleep(0.2)
    else:
        pytest.fail("the namespaces could not be made: " + lab.run(NETWORK).stderr)
    yield lab
    subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def open_to_all(network: Lab) -> Lab:
    """Without a firewall everything below can be reached: a drop that is seen later is the rules' doing."""
    assert network.connect("stranger", "10.0.0.1", 5432) == "connected"
    assert network.connect("stranger", "10.0.0.1", 9092) == "connected"
    assert network.connect("stranger", "10.0.0.1", 9998) == "connected"
    assert network.connect("stranger", "172.30.0.2", 9092) == "connected"
    assert network.connect("container", "10.0.0.1", 22) == "connected"
    return network


@pytest.fixture(scope="module")
def lab(open_to_all: Lab) -> Lab:
    rules = "/provisioning/setup_server1_dataproc.sh --settings /settings.env --rules > /rules.nft"
    open_to_all.output(f"{rules} && ip netns exec server1 nft -f /rules.nft")
    return open_to_all


@pytest.mark.parametrize(
    ("source", "port", "seen"),
    [
        ("server2", 5432, "connected"),
        ("server3", 5432, "connected"),
        ("stranger", 5432, "dropped"),
        ("admin", 5432, "dropped"),
        ("server2", 9092, "connected"),
        ("server3", 9092, "connected"),
        ("stranger", 9092, "dropped"),
        ("pod", 5432, "connected"),
        ("pod", 9092, "connected"),
        ("pod", 7077, "dropped"),
        ("pod", 9998, "dropped"),
        ("pod", 22, "dropped"),
        ("server2", 7077, "refused"),
        ("server3", 7077, "dropped"),
        ("server2", 9999, "dropped"),
        ("server2", 9998, "dropped"),
        ("server2", 22, "connected"),
        ("admin", 22, "connected"),
        ("stranger", 22, "dropped"),
    ],
)
def test_who_reaches_what(lab: Lab, source: str, port: int, seen: str):
    """9092 and 9998 are published the way Docker does it, 5432, 22 and 9999 are the machine's own."""
    assert lab.connect(source, "10.0.0.1", port) == seen


def test_nobody_is_routed_to_a_container(lab: Lab):
    assert lab.connect("stranger", "172.30.0.2", 9092) == "dropped"


def test_containers_reach_the_world_and_published_ports_only(lab: Lab):
    assert lab.connect("container", "10.0.0.2", 80) == "connected"
    assert lab.connect("container", "10.0.0.9", 80) == "connected"
    assert lab.connect("container", "10.0.0.1", 5432) == "connected"
    assert lab.connect("container", "10.0.0.1", 22) == "dropped"
    assert lab.connect("container", "10.0.0.1", 9999) == "dropped"


def test_the_server_itself_reaches_the_world(lab: Lab):
    assert lab.connect("server1", "10.0.0.2", 80) == "connected"
    assert lab.connect("server1", "127.0.0.1", 5432) == "connected"


def test_ssh_from_one_address_is_slowed_down(lab: Lab):
    seen = [lab.connect("admin", "10.0.0.1", 22) for _ in range(16)]
    assert seen[0] == "connected" or "dropped" in seen
    assert seen[-1] == "dropped"
    assert lab.connect("server2", "10.0.0.1", 22) == "connected", "the other servers are not slowed down"


LONG_CONNECTION = """
ip netns exec server1 python3 -c '
import socket
talk = socket.create_server(("0.0.0.0", 8333)).accept()[0]
assert talk.recv(1) == b"x"
open("/still_there", "w")
' &
sleep 0.5
ip netns exec server2 python3 -c '
import socket, time
talk = socket.create_connection(("10.0.0.1", 8333), timeout=2)
time.sleep(2)
talk.send(b"x")
time.sleep(1)
' &
sleep 1
ip netns exec server1 nft -f /rules.nft; ip netns exec server1 nft -f /rules.nft
wait
test -e /still_there
"""


def test_loading_the_rules_again_leaves_connections_and_docker_rules_alone(lab: Lab):
    lab.output(LONG_CONNECTION)
    assert "dnat to 172.30.0.2" in lab.output("ip netns exec server1 nft list ruleset")
    assert lab.output("ip netns exec server1 nft list tables | grep -c mlops_firewall").strip() == "1"


def test_without_its_rule_a_port_is_closed_and_without_ours_all_are_open(lab: Lab):
    lab.output(
        "grep -v 'dport 5432 counter' /rules.nft > /fewer.nft && ip netns exec server1 nft -f /fewer.nft"
    )
    assert lab.connect("server2", "10.0.0.1", 5432) == "dropped"
    lab.output("ip netns exec server1 nft delete table inet mlops_firewall")
    assert lab.connect("stranger", "10.0.0.1", 5432) == "connected"
    lab.output("ip netns exec server1 nft -f /rules.nft")
    assert lab.connect("stranger", "10.0.0.1", 5432) == "dropped"


def test_a_firewall_in_the_input_chain_alone_would_miss_published_ports(lab: Lab):
    """Why the decision is taken ahead of the rewriting."""
    usual = Path("/usual.nft")
    lab.output(
        f"cat > {usual} <<'END'\ntable inet usual {{ chain input {{ type filter hook input priority filter; "
        'policy drop; ct state established,related accept; iifname "lo" accept\n }\n}\nEND\n'
        f"ip netns exec server1 nft delete table inet mlops_firewall; ip netns exec server1 nft -f {usual}"
    )
    assert lab.connect("stranger", "10.0.0.1", 5432) == "dropped"
    assert lab.connect("stranger", "10.0.0.1", 9092) == "connected"
    lab.output("ip netns exec server1 nft delete table inet usual; ip netns exec server1 nft -f /rules.nft")
    assert lab.connect("stranger", "10.0.0.1", 9092) == "dropped"
