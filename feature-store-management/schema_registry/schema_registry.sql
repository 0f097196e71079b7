-- What the embedded registry keeps, in the schema `schema_registry` (the first of the search path).
-- Every statement may run again at any time.

-- One row for each different schema; the same schema under two subjects is one row, as its id travels in messages.
create table if not exists schemas (
    id integer generated always as identity primary key,
    fingerprint text not null unique, -- SHA-256 of the canonical JSON
    schema text not null,
    registered_at timestamptz not null default now()
);

create table if not exists versions (
    subject text not null,
    version integer not null,
    schema_id integer not null references schemas (id),
    deleted boolean not null default false,
    primary key (subject, version)
);
create index if not exists versions_schema_id on versions (schema_id);

-- Compatibility rule and mode; subject '' is the registry's own.
create table if not exists settings (
    subject text primary key,
    compatibility text,
    mode text
);
