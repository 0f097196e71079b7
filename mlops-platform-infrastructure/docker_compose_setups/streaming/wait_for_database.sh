#!/usr/bin/env bash
# Wait until the feature store's database answers and has the tables of the arguments; exit 1 after five minutes. The
# database belongs to another stack, so Compose can't order the two.
set -euo pipefail
PGPASSWORD="$(</run/secrets/feature_store_db_password)"
export PGPASSWORD PGCONNECT_TIMEOUT=5

missing() {
    local table found
    psql -X -q -A -t -c 'select 1' >/dev/null || { echo "the database"; return; }
    for table; do
        found="$(psql -X -q -A -t -v name="$table" <<<"select to_regclass(:'name') is not null")"
        [[ "$found" == t ]] || echo "$table"
    done
}

SECONDS=0
while waiting="$(missing "$@")" && [[ -n "$waiting" ]]; do
    if ((SECONDS > 300)); then
        echo "still missing: $waiting" >&2
        exit 1
    fi
    sleep 1
done
echo "there: the database${*:+, $*}"
