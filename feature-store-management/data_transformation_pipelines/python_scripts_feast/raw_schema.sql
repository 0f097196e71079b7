-- The raw tables, as the loaders write them, in the schema `raw` (the first of the search path).
-- Every statement may run again at any time.

-- The simulated data set the transactions belong to: one row. loaded_at: when a day of it was last written.
create table if not exists dataset (
    dataset_id text not null,
    loaded_at timestamptz not null
);
create unique index if not exists dataset_has_one_row on dataset ((true));

-- Which version of each day's files is in the tables: what makes a second run load nothing.
create table if not exists loaded_file (
    file_name text primary key,
    tx_date date not null,
    sha256 text not null,
    rows bigint not null,
    label_delay_days integer -- of a labels file: the delay its known_at was computed with
);

create table if not exists transactions (
    transaction_id bigint primary key,
    tx_datetime timestamptz not null,
    tx_date date not null,
    customer_id bigint not null,
    terminal_id bigint not null,
    tx_amount double precision not null,
    known_at timestamptz not null
);
create index if not exists transactions_tx_date on transactions (tx_date);

create table if not exists transaction_labels (
    transaction_id bigint primary key,
    tx_date date not null,
    is_fraud smallint not null,
    fraud_scenario smallint not null,
    known_at timestamptz not null
);
create index if not exists transaction_labels_tx_date on transaction_labels (tx_date);

create table if not exists subscribers (
    subscriber_id bigint primary key,
    subscriber_is_female bigint not null,
    subscriber_is_senior bigint not null,
    subscriber_has_partner bigint not null,
    subscriber_has_dependents bigint not null,
    subscriber_tenure_months bigint not null,
    subscriber_has_phone_service bigint not null,
    subscriber_multiple_lines text not null,
    subscriber_internet_service text not null,
    subscriber_online_security text not null,
    subscriber_online_backup text not null,
    subscriber_device_protection text not null,
    subscriber_tech_support text not null,
    subscriber_streaming_tv text not null,
    subscriber_streaming_movies text not null,
    subscriber_contract text not null,
    subscriber_has_paperless_billing bigint not null,
    subscriber_payment_method text not null,
    subscriber_monthly_charges_usd double precision not null,
    subscriber_total_charges_usd double precision not null,
    snapshot_at timestamptz not null,
    known_at timestamptz not null
);

create table if not exists subscriber_labels (
    subscriber_id bigint primary key,
    churned smallint not null,
    event_timestamp timestamptz not null,
    known_at timestamptz not null
);

-- Which version of a file that stands for a whole table is loaded: what makes a second run load nothing.
create table if not exists loaded_snapshot (
    file_name text primary key,
    sha256 text not null,
    rows bigint not null
);

create table if not exists movies (
    movie_id bigint primary key,
    title text,
    year smallint, -- of its release; title and year are both known or both missing
    genres text not null -- separated by a bar; empty: none listed
);

create table if not exists ratings (
    viewer_id bigint not null,
    movie_id bigint not null references movies,
    rating double precision not null, -- stars, 0.5 to 5 in halves
    rated_at timestamptz not null,
    known_at timestamptz not null,
    primary key (viewer_id, movie_id)
);
