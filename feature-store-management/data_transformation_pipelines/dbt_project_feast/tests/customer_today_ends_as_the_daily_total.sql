-- The running total that the last raw row of a day gives is the next day's total of one full day: the two views meet
-- without gap or overlap. What the stream adds to a day has no raw row yet.
with raw_days as (
    select
        customer_id,
        tx_date,
        last_known_at + interval '1 microsecond' as complete_from
    from {{ ref('int_customer_daily_totals') }}
),

last_totals as (
    select
        raw_days.customer_id,
        raw_days.tx_date,
        max(today.customer_tx_count_today) as tx_count,
        max(today.customer_tx_amount_sum_today) as tx_amount_sum
    from raw_days
    left join {{ ref('fct_customer_today') }} as today
        on raw_days.customer_id = today.customer_id
        and raw_days.tx_date - date '1970-01-01' = today.customer_today_day
        and raw_days.complete_from >= today.created_timestamp
    group by raw_days.customer_id, raw_days.tx_date
),

final as (
    select
        last_totals.customer_id,
        last_totals.tx_date
    from last_totals
    left join {{ ref('fct_customer_daily') }} as daily
        on last_totals.customer_id = daily.customer_id
        and {{ utc_midnight('last_totals.tx_date + 1') }} = daily.event_timestamp
    where (last_totals.tx_count, last_totals.tx_amount_sum)
        is distinct from (daily.customer_tx_count_full_1d, daily.customer_tx_amount_sum_full_1d)
)

select * from final
