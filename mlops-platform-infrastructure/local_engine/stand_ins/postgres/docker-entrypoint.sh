#!/bin/bash
# Does what the official image's entrypoint is documented to do: the first start makes the cluster from POSTGRES_*
# (or POSTGRES_*_FILE), runs /docker-entrypoint-initdb.d, and every start ends in the server as process 1.
set -Eeuo pipefail

setting() { # setting NAME DEFAULT: the variable, or what the file named by NAME_FILE holds
    local file="${1}_FILE"
    if [[ -n "${!1:-}" && -n "${!file:-}" ]]; then
        echo "error: both $1 and $file are set (but are exclusive)" >&2
        exit 1
    fi
    if [[ -n "${!file:-}" ]]; then
        printf -v "$1" '%s' "$(<"${!file}")"
    else
        printf -v "$1" '%s' "${!1:-$2}"
    fi
    export "${1?}"
    unset "$file"
}

initialise() {
    setting POSTGRES_PASSWORD ''
    setting POSTGRES_USER postgres
    setting POSTGRES_DB "$POSTGRES_USER"
    setting POSTGRES_INITDB_ARGS ''
    local method="${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}"
    if [[ -z "$POSTGRES_PASSWORD" && "$method" != trust ]]; then
        echo "Error: Database is uninitialized and superuser password is not specified." >&2
        echo "       You must specify POSTGRES_PASSWORD to a non-empty value for the superuser." >&2
        exit 1
    fi
    local -a arguments
    read -ra arguments <<<"$POSTGRES_INITDB_ARGS"
    # initdb asks for the name of its account, which an arbitrary number doesn't have.
    if ! getent passwd "$(id -u)" >/dev/null; then
        NSS_WRAPPER_PASSWD="$(mktemp)"
        NSS_WRAPPER_GROUP="$(mktemp)"
        echo "postgres:x:$(id -u):$(id -g):PostgreSQL:$PGDATA:/bin/false" >"$NSS_WRAPPER_PASSWD"
        echo "postgres:x:$(id -g):" >"$NSS_WRAPPER_GROUP"
        LD_PRELOAD="$(echo /usr/lib/*/libnss_wrapper.so)"
        export LD_PRELOAD NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP
    fi
    initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") -D "$PGDATA" \
        --set listen_addresses='*' "${arguments[@]}"
    if [[ -n "${NSS_WRAPPER_PASSWD:-}" ]]; then
        rm -f "$NSS_WRAPPER_PASSWD" "$NSS_WRAPPER_GROUP"
        unset LD_PRELOAD NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP
    fi
    printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"

    shift
    PGUSER="$POSTGRES_USER" pg_ctl -D "$PGDATA" -o "$(printf '%q ' "$@" -c listen_addresses= -p 5432)" -w start
    export PGPASSWORD="$POSTGRES_PASSWORD"
    if [[ "$POSTGRES_DB" != postgres ]]; then
        psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --no-password --dbname postgres --set db="$POSTGRES_DB" \
            <<<'create database :"db" ;'
    fi
    run_init_files /docker-entrypoint-initdb.d/*
    PGUSER="$POSTGRES_USER" pg_ctl -D "$PGDATA" -m fast -w stop
    unset PGPASSWORD
    echo 'PostgreSQL init process complete; ready for start up.'
}

process_sql() {
    psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --no-password --dbname "$POSTGRES_DB" "$@"
}

run_init_files() {
    local file
    for file; do
        case "$file" in
        *.sh)
            echo "$0: running $file"
            # shellcheck disable=SC1090
            if [[ -x "$file" ]]; then "$file"; else . "$file"; fi
            ;;
        *.sql) echo "$0: running $file"; process_sql -f "$file" ;;
        *.sql.gz) echo "$0: running $file"; gunzip -c "$file" | process_sql ;;
        *) [[ ! -e "$file" ]] || echo "$0: ignoring $file" ;;
        esac
    done
}

if [[ "${1:0:1}" == - ]]; then set -- postgres "$@"; fi
if [[ "$1" == postgres ]]; then
    mkdir -p "$PGDATA"
    chmod 00700 "$PGDATA" || :
    if [[ "$(id -u)" == 0 ]]; then
        find "$PGDATA" /var/run/postgresql \! -user postgres -exec chown postgres '{}' +
        exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
    fi
    # Debian's PostgreSQL keeps its socket there; this one was built to keep it in /tmp.
    shift
    set -- postgres -c unix_socket_directories=/var/run/postgresql "$@"
    if [[ ! -s "$PGDATA/PG_VERSION" ]]; then initialise "$@"; fi
    unset POSTGRES_PASSWORD
fi
exec "$@"
