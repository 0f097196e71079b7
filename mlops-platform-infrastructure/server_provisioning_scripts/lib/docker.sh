# shellcheck shell=bash
# Docker's engine, its settings, and the unit that brings the server's stacks up with the machine.

# Docker's release key, as its documentation states it.
DOCKER_KEY_FINGERPRINT=9DC858229FC7DD38854AE2D88D81803C0EBFCD88

docker_packages() {
    if [ "$DOCKER_SOURCE" = docker ]; then
        echo docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin
    else
        # Debian 12 has no Compose 2: server_tools brings its own.
        echo docker.io
    fi
}

setup_docker_source() {
    local found
    [ "$DOCKER_SOURCE" = docker ] || return 0
    ensure_packages gnupg
    if command -v gpg >/dev/null; then
        found=$(gpg --batch --with-colons --show-keys "$DOCKER_APT_KEY" 2>/dev/null | awk -F: '$1 == "fpr" { print $10; exit }')
        [ "$found" = "$DOCKER_KEY_FINGERPRINT" ] || refuse "$DOCKER_APT_KEY holds the key '${found:-none}', not Docker's ($DOCKER_KEY_FINGERPRINT)"
    fi
    ensure_directory /etc/apt/keyrings 0755 root root
    ensure_file /etc/apt/keyrings/docker.asc 0644 <"$DOCKER_APT_KEY"
    ensure_file /etc/apt/sources.list.d/docker.list 0644 <<END
deb [arch=$(dpkg --print-architecture) signed-by=/etc/apt/keyrings/docker.asc] $DOCKER_APT_URI $OS_CODENAME stable
END
}

check_json() {
    python3 -m json.tool "$1" /dev/null
}

setup_docker() {
    # Written ahead of the package, so that the engine never runs without it.
    ensure_directory /etc/docker 0755 root root
    ensure_file /etc/docker/daemon.json 0644 check_json <<END
{
  "data-root": "$DOCKER_DATA_ROOT",
  "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 65536, "Hard": 65536}},
  "ip": "127.0.0.1",
  "live-restore": true,
  "log-driver": "json-file",
  "log-opts": {"max-file": "5", "max-size": "20m"},
  "no-new-privileges": true,
  "userland-proxy": $DOCKER_USERLAND_PROXY
}
END
    local daemon_changed=$FILE_CHANGED
    # shellcheck disable=SC2046  # a list of packages, split on purpose
    ensure_packages $(docker_packages)
    # With live-restore the containers run on while their engine restarts.
    ensure_service docker.service "$daemon_changed" restart
}

setup_stack_unit() {
    local server=$1 title=$2 name=mlops-server$1.service
    ensure_file "/etc/systemd/system/$name" 0644 <<END
[Unit]
Description=MLOps platform, server $server: $title
Documentation=file://$MLOPS_REPOSITORY/docs/operations.md
Requires=docker.service
After=docker.service network-online.target nftables.service chrony.service
Wants=network-online.target
# Nothing to start until the platform is deployed here.
ConditionPathExists=$MLOPS_REPOSITORY/mlops-platform-infrastructure/Makefile
ConditionPathExists=/var/lib/mlops/servers/servers.env

[Service]
Type=oneshot
RemainAfterExit=yes
User=mlops
Group=mlops
# Docker's socket is as good as root, so the account has it only inside this unit, and no shell.
SupplementaryGroups=docker
# This root alone: the repository's own verbs would set up the other roots' environments, too.
WorkingDirectory=$MLOPS_REPOSITORY/mlops-platform-infrastructure
Environment=HOME=/var/lib/mlops LOCAL_DIR=/var/lib/mlops/local MLOPS_SERVERS_DIR=/var/lib/mlops/servers
ExecStart=/usr/bin/make up-server$server
ExecStop=/usr/bin/make down-server$server
TimeoutStartSec=900
TimeoutStopSec=300
UMask=0077

[Install]
WantedBy=multi-user.target
END
    units_changed
    ensure_service "$name" no enable
}
