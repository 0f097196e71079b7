#!/usr/bin/env bash
# Create the platform's roles and databases that are missing, and give each role the password of its secret: what
# stands stays, and a changed secret is taken over. Safe to rerun.
set -euo pipefail

secret() {
    local value
    value="$(<"/run/secrets/$1")"
    [[ -n "$value" ]] || { echo "the secret $1 is empty" >&2; exit 1; }
    printf '%s' "$value"
}

PGPASSWORD="$(secret postgres_password)"
export PGPASSWORD

# Passwords reach psql by its environment, and SQL as quoted literals: neither the process list nor the log has them.
role() { # role NAME ATTRIBUTES
    ROLE_PASSWORD="$(secret "$1_db_password")" psql -X -q -v ON_ERROR_STOP=1 -d postgres -v name="$1" <<SQL
\\getenv password ROLE_PASSWORD
set log_statement = 'none';
set log_min_duration_statement = -1;
set log_min_error_statement = 'panic';
select format('create role %I', :'name') where not exists (select from pg_roles where rolname = :'name') \\gexec
alter role :"name" with login $2 password :'password';
SQL
}

for name in feature_store decisions mlflow airflow; do
    role "$name" 'nosuperuser nocreatedb nocreaterole noreplication'
    psql -X -q -v ON_ERROR_STOP=1 -d postgres -v name="$name" <<'SQL'
select format('create database %I owner %I', :'name', :'name')
where not exists (select from pg_database where datname = :'name') \gexec
revoke all on database :"name" from public;
SQL
    echo "database $name: ready"
done

# Reads statistics, not rows.
role monitoring 'nosuperuser nocreatedb nocreaterole noreplication connection limit 8'
# Copies the whole cluster and its log, nothing else.
role backup 'nosuperuser nocreatedb nocreaterole replication connection limit 8'
psql -X -q -v ON_ERROR_STOP=1 -d postgres <<'SQL'
grant pg_monitor to monitoring;
grant pg_monitor to backup;
grant execute on function pg_switch_wal() to backup;
grant execute on function pg_create_restore_point(text) to backup;
select format('grant connect on database %I to monitoring, backup', datname)
from pg_database where datname in ('feature_store', 'decisions', 'mlflow', 'airflow') \gexec
SQL
echo "roles monitoring, backup: ready"

# Reads MLflow's database, for its dump alone. What a migration of MLflow creates later is covered by the default.
role mlflow_backup 'nosuperuser nocreatedb nocreaterole noreplication connection limit 4'
psql -X -q -v ON_ERROR_STOP=1 -d mlflow <<'SQL'
alter role mlflow_backup set default_transaction_read_only = on;
grant connect on database mlflow to mlflow_backup;
grant usage on schema public to mlflow_backup;
grant select on all tables in schema public to mlflow_backup;
grant select on all sequences in schema public to mlflow_backup;
alter default privileges for role mlflow in schema public grant select on tables to mlflow_backup;
alter default privileges for role mlflow in schema public grant select on sequences to mlflow_backup;
SQL
echo "role mlflow_backup: ready"

# Rules of pg_hba.conf that are newer than the server's start count from here on.
psql -X -q -v ON_ERROR_STOP=1 -d postgres -c 'select pg_reload_conf()' >/dev/null
