#!/usr/bin/env bash
# Make a fresh Debian machine server 1: data processing and feature store.
# Idempotent; --help says how to call it, ../docs/provisioning.md what it does.
set -Eeuo pipefail

SERVER=1
TITLE="data processing and feature store"
MEMORY_GIB=16
KERNEL="# PostgreSQL: dirty pages go to disk steadily, not in one flood at a checkpoint.
vm.dirty_background_bytes = 67108864
vm.dirty_bytes = 536870912
# Kafka maps its log segments.
vm.max_map_count = 262144"

# shellcheck source=lib/provision.sh
. "$(dirname "$(readlink -f "$0")")/lib/provision.sh"
provision "$@"
