-- A day's row counts the day before: all rows together hold every transaction once, and every cent.
with raw_totals as (
    select
        sum(tx_count) as tx_count,
        sum(tx_amount_cents) as tx_amount_cents
    from {{ ref('int_transaction_days') }}
),

daily_totals as (
    select
        coalesce(sum(customer_tx_count_full_1d), 0) as tx_count,
        coalesce(sum(round(customer_tx_amount_sum_full_1d * 100)::bigint), 0) as tx_amount_cents
    from {{ ref('fct_customer_daily') }}
),

final as (
    select
        raw_totals.tx_count as raw_count,
        daily_totals.tx_count as daily_count,
        raw_totals.tx_amount_cents as raw_cents,
        daily_totals.tx_amount_cents as daily_cents
    from raw_totals
    cross join daily_totals
    where (coalesce(raw_totals.tx_count, 0), coalesce(raw_totals.tx_amount_cents, 0))
        is distinct from (daily_totals.tx_count, daily_totals.tx_amount_cents)
)

select * from final
