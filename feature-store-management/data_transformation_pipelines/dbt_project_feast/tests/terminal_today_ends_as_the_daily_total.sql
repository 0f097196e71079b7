-- The running total that the last raw row of a day gives is the next day's total of one full day: the two views meet
-- without gap or overlap. What the stream adds to a day has no raw row yet.
with raw_days as (
    select
        terminal_id,
        tx_date,
        last_known_at + interval '1 microsecond' as complete_from
    from {{ ref('int_terminal_daily_totals') }}
),

last_totals as (
    select
        raw_days.terminal_id,
        raw_days.tx_date,
        max(today.terminal_tx_count_today) as tx_count
    from raw_days
    left join {{ ref('fct_terminal_today') }} as today
        on raw_days.terminal_id = today.terminal_id
        and raw_days.tx_date - date '1970-01-01' = today.terminal_today_day
        and raw_days.complete_from >= today.created_timestamp
    group by raw_days.terminal_id, raw_days.tx_date
),

final as (
    select
        last_totals.terminal_id,
        last_totals.tx_date
    from last_totals
    left join {{ ref('fct_terminal_daily') }} as daily
        on last_totals.terminal_id = daily.terminal_id
        and {{ utc_midnight('last_totals.tx_date + 1') }} = daily.event_timestamp
    where last_totals.tx_count
        is distinct from daily.terminal_tx_count_full_1d
)

select * from final
