#!/usr/bin/env bash
# Make a fresh Debian machine server 3: serving and monitoring.
# Idempotent; --help says how to call it, ../docs/provisioning.md what it does.
set -Eeuo pipefail

SERVER=3
TITLE="serving and monitoring"
MEMORY_GIB=16
KERNEL="# Elasticsearch maps its segments.
vm.max_map_count = 262144
# Many short connections to the services.
net.ipv4.ip_local_port_range = 10240 60999"

# shellcheck source=lib/provision.sh
. "$(dirname "$(readlink -f "$0")")/lib/provision.sh"
provision "$@"
