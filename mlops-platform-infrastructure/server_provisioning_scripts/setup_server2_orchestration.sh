#!/usr/bin/env bash
# Make a fresh Debian machine server 2: orchestration, online store, registry.
# Idempotent; --help says how to call it, ../docs/provisioning.md what it does.
set -Eeuo pipefail

SERVER=2
TITLE="orchestration, online store, registry"
MEMORY_GIB=16
KERNEL="# Redis forks to write its log anew; the copy shares its pages and must not be refused.
vm.overcommit_memory = 1"

# shellcheck source=lib/provision.sh
. "$(dirname "$(readlink -f "$0")")/lib/provision.sh"
provision "$@"
