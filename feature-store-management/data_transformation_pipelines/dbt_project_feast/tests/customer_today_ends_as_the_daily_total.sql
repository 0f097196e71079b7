-- The last running total of a day is the next day's total of one full day: the two views meet without gap or overlap.
with last_totals as (
    select
        customer_id,
        customer_today_day,
        max(customer_tx_count_today) as tx_count,
        max(customer_tx_amount_sum_today) as tx_amount_sum
    from {{ ref('fct_customer_today') }}
    group by customer_id, customer_today_day
),

final as (
    select
        last_totals.customer_id,
        last_totals.customer_today_day
    from last_totals
    left join {{ ref('fct_customer_daily') }} as daily
        on last_totals.customer_id = daily.customer_id
        and daily.event_timestamp
        = {{ utc_midnight("date '1970-01-01' + (last_totals.customer_today_day + 1)::integer") }}
    where (last_totals.tx_count, last_totals.tx_amount_sum)
        is distinct from (daily.customer_tx_count_full_1d, daily.customer_tx_amount_sum_full_1d)
)

select * from final
