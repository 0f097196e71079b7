# shellcheck shell=bash
# Sourced by the scripts beside it: where things are, and what must be set.

ROOT_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
LOCAL_DIR="${LOCAL_DIR:-$ROOT_DIR/../.local}"
VENV="${VENV:-$LOCAL_DIR/venvs/feature-store-management}"
export PATH="$VENV/bin:$PATH"
export PYTHONPATH="$ROOT_DIR/feast_repository${PYTHONPATH:+:$PYTHONPATH}"
export DO_NOT_TRACK=1 FEAST_USAGE=False DBT_SEND_ANONYMOUS_USAGE_STATS=false

FEATURE_STORE_DB_VARIABLES=(
  FEATURE_STORE_DB_HOST FEATURE_STORE_DB_PORT FEATURE_STORE_DB_NAME FEATURE_STORE_DB_USER FEATURE_STORE_DB_PASSWORD
)
REDIS_VARIABLES=(REDIS_HOST REDIS_PORT REDIS_PASSWORD)

die() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# Stop, naming every variable of the arguments that is not set.
require_variables() {
  local missing=() name
  for name in "$@"; do
    [[ -n "${!name:-}" ]] || missing+=("$name")
  done
  ((${#missing[@]} == 0)) || die "not set: ${missing[*]} (docs/architecture.md, Settings)"
}

require_program() {
  command -v "$1" >/dev/null || die "no $1 in $VENV: run \`make setup\` in $ROOT_DIR, or name another with VENV="
}
