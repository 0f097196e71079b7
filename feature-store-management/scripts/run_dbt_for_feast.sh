#!/usr/bin/env bash
# Build and test the feature and label tables. Safe to rerun: what is already built from the present rows stays, and
# what a failed run left undone is built. One build at a time: a second one waits, then says who holds the tables.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() {
  cat <<TEXT
usage: $(basename "$0") [--from-date YYYY-MM-DD] [--full-refresh] [--unit-tests]
       $(basename "$0") --freshness | --docs

  (no option)      rebuild from the first day whose raw rows are not those the tables were built from
  --from-date D    rebuild from day D on at the latest, even where its raw rows look unchanged
  --full-refresh   rebuild everything; needed after a change of the models themselves
  --unit-tests     run the models' unit tests too (they test the code, not the data)
  --freshness      only check how old the newest raw rows are
  --docs           only write the documentation of the tables, as one HTML page
TEXT
}

action=build
from_date=""
unit_tests=""
arguments=()
while (($# > 0)); do
  case "$1" in
    --from-date)
      (($# >= 2)) || die "--from-date needs a date"
      from_date="$2"
      shift
      ;;
    --from-date=*) from_date="${1#*=}" ;;
    --full-refresh) arguments+=(--full-refresh) ;;
    --unit-tests) unit_tests=yes ;;
    --freshness) action=freshness ;;
    --docs) action=docs ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      die "unknown argument: $1"
      ;;
  esac
  shift
done

[[ -n "$unit_tests" ]] || arguments+=(--exclude-resource-type unit_test)
require_variables "${FEATURE_STORE_DB_VARIABLES[@]}"
require_program dbt
if [[ -n "$from_date" ]]; then
  python - "$from_date" <<'PY' || die "--from-date: no date YYYY-MM-DD: $from_date"
import datetime
import re
import sys

text = sys.argv[1]
try:
    good = bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", text)) and bool(datetime.date.fromisoformat(text))
except ValueError:
    good = False
sys.exit(0 if good else 1)
PY
  arguments+=(--vars "{from_date: '$from_date'}")
fi

# dbt wants the connection in a file named profiles.yml; the template reads the environment, so it serves as it is.
profiles_dir="$(mktemp -d)"
trap 'rm -rf "$profiles_dir"' EXIT
project="$ROOT_DIR/data_transformation_pipelines/dbt_project_feast"
ln -s "$project/profiles.yml.template" "$profiles_dir/profiles.yml"

# Target and log of an instance lie beside its data, so that two instances do not share them.
state_dir="${DATA_DIR:+$DATA_DIR/dbt}"
export DBT_TARGET_PATH="${DBT_TARGET_PATH:-${state_dir:-$project}/target}"
export DBT_LOG_PATH="${DBT_LOG_PATH:-${state_dir:-$project}/logs}"

# dbt as it is, holding the lock that a backfill of the same tables holds too.
locked_dbt() {
  PYTHONPATH="$ROOT_DIR:$PYTHONPATH" python -m backfill.run_dbt "$@"
}

in_project=(--project-dir "$project" --profiles-dir "$profiles_dir")

case "$action" in
  build) locked_dbt build "${in_project[@]}" ${arguments[@]+"${arguments[@]}"} ;;
  freshness) dbt source freshness "${in_project[@]}" ;;
  docs)
    dbt docs generate --static "${in_project[@]}"
    page="$DBT_TARGET_PATH/static_index.html"
    if [[ -n "${REPORTS_DIR:-}" ]]; then
      mkdir -p "$REPORTS_DIR/dbt"
      cp "$page" "$REPORTS_DIR/dbt/index.html"
      page="$REPORTS_DIR/dbt/index.html"
    fi
    echo "tables documented in $page"
    ;;
esac
