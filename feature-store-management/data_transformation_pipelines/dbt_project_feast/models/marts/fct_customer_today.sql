{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    schema='features',
    indexes=[
      {'columns': ['customer_id', 'event_timestamp', 'created_timestamp'], 'unique': true},
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
        customer_id,
        tx_date,
        greatest(known_at, event_timestamp) as arrived_at,
        max(event_timestamp) as newest_transaction_at,
        sum(tx_amount_cents)::bigint as tx_amount_cents,
        count(*) as tx_count
    from transactions
    group by customer_id, tx_date, greatest(known_at, event_timestamp)
),

-- Nothing arrives before it happened, so a row is never created before it is true.
running_totals as (
    select
        customer_id,
        max(newest_transaction_at) over so_far + interval '1 microsecond' as event_timestamp,
        arrived_at + interval '1 microsecond' as created_timestamp,
        (sum(tx_count) over so_far)::bigint as customer_tx_count_today,
        (sum(tx_amount_cents) over so_far)::double precision / 100 as customer_tx_amount_sum_today,
        (tx_date - date '1970-01-01')::bigint as customer_today_day
    from arrivals
    window so_far as (
        partition by customer_id, tx_date order by arrived_at rows unbounded preceding
    )
),

final as (
    select * from running_totals
    {{ and_streamed_rows(['customer_id', 'event_timestamp', 'created_timestamp', 'customer_tx_count_today', 'customer_tx_amount_sum_today', 'customer_today_day']) }}
)

select * from final
