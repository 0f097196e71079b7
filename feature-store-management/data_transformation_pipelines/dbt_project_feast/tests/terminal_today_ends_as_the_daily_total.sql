-- The last running total of a day is the next day's total of one full day: the two views meet without gap or overlap.
with last_totals as (
    select
        terminal_id,
        terminal_today_day,
        max(terminal_tx_count_today) as tx_count
    from {{ ref('fct_terminal_today') }}
    group by terminal_id, terminal_today_day
),

final as (
    select
        last_totals.terminal_id,
        last_totals.terminal_today_day
    from last_totals
    left join {{ ref('fct_terminal_daily') }} as daily
        on last_totals.terminal_id = daily.terminal_id
        and daily.event_timestamp
        = {{ utc_midnight("date '1970-01-01' + (last_totals.terminal_today_day + 1)::integer") }}
    where last_totals.tx_count is distinct from daily.terminal_tx_count_full_1d
)

select * from final
