#!/usr/bin/env bash
# Write the definitions of feast_repository into the registry. Safe to rerun: unchanged definitions stay.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if (($# > 0)); then
  echo "usage: $(basename "$0")" >&2
  [[ "$1" == "--help" || "$1" == "-h" ]] && exit 0
  exit 2
fi
require_variables "${FEATURE_STORE_DB_VARIABLES[@]}" "${REDIS_VARIABLES[@]}"
require_program feast

cd "$ROOT_DIR/feast_repository"
python create_registry_schema.py
exec feast apply
