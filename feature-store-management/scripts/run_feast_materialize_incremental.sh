#!/usr/bin/env bash
# Bring the online store to what the feature tables say as of END (default: now); --help explains. Safe to rerun.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [[ "${1:-}" != "--help" && "${1:-}" != "-h" ]]; then
  require_variables "${FEATURE_STORE_DB_VARIABLES[@]}" "${REDIS_VARIABLES[@]}"
  # What failed a critical expectation is not published: the online store keeps what it has.
  (cd "$ROOT_DIR" && python -m data_quality.publication)
fi
require_program feast

exec python "$ROOT_DIR/feast_repository/materialize.py" "$@"
