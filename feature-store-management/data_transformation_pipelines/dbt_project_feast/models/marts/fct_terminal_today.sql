{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    schema='features',
    indexes=[
      {'columns': ['terminal_id', 'event_timestamp', 'created_timestamp'], 'unique': true},
      {'columns': ['event_timestamp']}
    ],
    pre_hook="{{ forget_running_totals('transactions_fingerprint') }}",
    post_hook="{{ remember_built_days('transactions_fingerprint') }}"
) }}

with transactions as (
    select * from {{ ref('stg_transactions') }}
    where tx_date >= {{ first_changed_day('transactions_fingerprint') }}
),

-- What became known at one moment shares one row, and so the totals that hold all of it.
arrivals as (
    select
        terminal_id,
        tx_date,
        greatest(known_at, event_timestamp) as arrived_at,
        max(event_timestamp) as newest_transaction_at,
        count(*) as tx_count
    from transactions
    group by terminal_id, tx_date, greatest(known_at, event_timestamp)
),

-- Nothing arrives before it happened, so a row is never created before it is true.
running_totals as (
    select
        terminal_id,
        max(newest_transaction_at) over so_far + interval '1 microsecond' as event_timestamp,
        arrived_at + interval '1 microsecond' as created_timestamp,
        (sum(tx_count) over so_far)::bigint as terminal_tx_count_today,
        (tx_date - date '1970-01-01')::bigint as terminal_today_day
    from arrivals
    window so_far as (
        partition by terminal_id, tx_date order by arrived_at rows unbounded preceding
    )
),

final as (
    select * from running_totals
    {{ and_streamed_rows(['terminal_id', 'event_timestamp', 'created_timestamp', 'terminal_tx_count_today', 'terminal_today_day']) }}
)

select * from final
