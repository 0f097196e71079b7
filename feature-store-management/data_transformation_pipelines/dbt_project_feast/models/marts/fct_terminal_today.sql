{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    schema='features',
    indexes=[{'columns': ['terminal_id', 'event_timestamp'], 'unique': true}, {'columns': ['event_timestamp']}],
    pre_hook="{{ forget_rows('event_timestamp >= ' ~ utc_midnight(first_changed_day('transactions_fingerprint'))) }}",
    post_hook="{{ remember_built_days('transactions_fingerprint') }}"
) }}

with transactions as (
    select * from {{ ref('stg_transactions') }}
    where tx_date >= {{ first_changed_day('transactions_fingerprint') }}
),

-- Simultaneous transactions share one row, and so the total that holds all of them.
moments as (
    select
        terminal_id,
        tx_date,
        event_timestamp,
        count(*) as tx_count,
        max(known_at) as last_known_at
    from transactions
    group by terminal_id, tx_date, event_timestamp
),

final as (
    select
        terminal_id,
        event_timestamp,
        greatest(event_timestamp, max(last_known_at) over since_midnight) as created_timestamp,
        (sum(tx_count) over since_midnight)::bigint as terminal_tx_count_today,
        (tx_date - date '1970-01-01')::bigint as terminal_today_day
    from moments
    window since_midnight as (
        partition by terminal_id, tx_date order by event_timestamp rows unbounded preceding
    )
)

select * from final
