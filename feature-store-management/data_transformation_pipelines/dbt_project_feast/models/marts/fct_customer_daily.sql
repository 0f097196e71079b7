{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    schema='features',
    indexes=[{'columns': ['customer_id', 'event_timestamp'], 'unique': true}, {'columns': ['event_timestamp']}],
    pre_hook="{{ forget_rows('event_timestamp > ' ~ utc_midnight(first_changed_day('transactions_fingerprint'))) }}",
    post_hook="{{ remember_built_days('transactions_fingerprint') }}"
) }}

{#- A changed day enters the windows of the days after it; the first of these reaches 30 days back. -#}
{%- set changed_day = first_changed_day('transactions_fingerprint') %}

with all_daily_totals as (
    select * from {{ ref('int_customer_daily_totals') }}
),

daily_totals as (
    select * from all_daily_totals
    where tx_date >= {{ changed_day }} - 29
),

calendar as (
    select max(tx_date) + 1 as last_day from {{ ref('int_transaction_days') }}
),

customers as (
    select
        customer_id,
        min(tx_date) as first_day
    from all_daily_totals
    group by customer_id
),

-- Dense: a day without transactions has a row too, so a frame of N rows is a window of N days.
days as (
    select
        customers.customer_id,
        customers.first_day,
        day::date as day
    from customers
    cross join calendar
    cross join lateral generate_series(
        greatest(customers.first_day, {{ changed_day }} - 29)::timestamp, calendar.last_day::timestamp, interval '1 day'
    ) as day
),

windows as (
    select
        days.customer_id,
        days.first_day,
        days.day,
        sum(daily_totals.tx_count) over last_1d as tx_count_1d,
        sum(daily_totals.tx_count) over last_7d as tx_count_7d,
        sum(daily_totals.tx_count) over last_30d as tx_count_30d,
        sum(daily_totals.tx_amount_cents) over last_1d as tx_amount_cents_1d,
        sum(daily_totals.tx_amount_cents) over last_7d as tx_amount_cents_7d,
        sum(daily_totals.tx_amount_cents) over last_30d as tx_amount_cents_30d
    from days
    left join daily_totals
        on days.customer_id = daily_totals.customer_id and days.day = daily_totals.tx_date
    window
        last_1d as (partition by days.customer_id order by days.day rows between 1 preceding and 1 preceding),
        last_7d as (partition by days.customer_id order by days.day rows between 7 preceding and 1 preceding),
        last_30d as (partition by days.customer_id order by days.day rows between 30 preceding and 1 preceding)
),

-- Rows that came in when their own day was over: the only ones that make a window known later than it is true. What
-- is known strictly before a midnight may be used at it, so one that came in at the midnight itself is late too.
late_arrivals as (
    select
        daily_totals.customer_id,
        day::date as day,
        max(daily_totals.last_known_at) + interval '1 microsecond' as known_from
    from daily_totals
    cross join lateral generate_series(daily_totals.tx_date + 1, daily_totals.tx_date + 30, interval '1 day') as day
    where daily_totals.last_known_at >= {{ utc_midnight('daily_totals.tx_date + 1') }}
    group by daily_totals.customer_id, day
),

final as (
    select
        windows.customer_id,
        {{ utc_midnight('windows.day') }} as event_timestamp,
        greatest({{ utc_midnight('windows.day') }}, late_arrivals.known_from) as created_timestamp,
        coalesce(tx_count_1d, 0)::bigint as customer_tx_count_full_1d,
        coalesce(tx_count_7d, 0)::bigint as customer_tx_count_full_7d,
        coalesce(tx_count_30d, 0)::bigint as customer_tx_count_full_30d,
        coalesce(tx_amount_cents_1d, 0)::double precision / 100 as customer_tx_amount_sum_full_1d,
        coalesce(tx_amount_cents_7d, 0)::double precision / 100 as customer_tx_amount_sum_full_7d,
        coalesce(tx_amount_cents_30d, 0)::double precision / 100 as customer_tx_amount_sum_full_30d
    from windows
    left join late_arrivals
        on windows.customer_id = late_arrivals.customer_id and windows.day = late_arrivals.day
    where windows.day > windows.first_day and windows.day > {{ changed_day }}
)

select * from final
