{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    schema='features',
    indexes=[{'columns': ['terminal_id', 'event_timestamp'], 'unique': true}, {'columns': ['event_timestamp']}],
    pre_hook="{{ forget_rows('event_timestamp > ' ~ utc_midnight(first_changed_day(fingerprint_of_matured_labels()))) }}",
    post_hook="{{ remember_built_days(fingerprint_of_matured_labels()) }}"
) }}

{#- A changed day enters the windows of the days after it; the first of these reaches 30 days back. Labels count
    from the day they mature, which is later still. -#}
{%- set changed_day = first_changed_day(fingerprint_of_matured_labels()) %}

with all_daily_totals as (
    select * from {{ ref('int_terminal_daily_totals') }}
),

daily_totals as (
    select * from all_daily_totals
    where tx_date >= {{ changed_day }} - 29
),

daily_labels as (
    select * from {{ ref('int_terminal_daily_labels') }}
    where matured_date >= {{ changed_day }} - 29
),

calendar as (
    select max(tx_date) + 1 as last_day from {{ ref('int_transaction_days') }}
),

terminals as (
    select
        terminal_id,
        min(tx_date) as first_day
    from all_daily_totals
    group by terminal_id
),

-- Dense: a day without transactions has a row too, so a frame of N rows is a window of N days.
days as (
    select
        terminals.terminal_id,
        terminals.first_day,
        day::date as day
    from terminals
    cross join calendar
    cross join lateral generate_series(
        greatest(terminals.first_day, {{ changed_day }} - 29)::timestamp, calendar.last_day::timestamp, interval '1 day'
    ) as day
),

windows as (
    select
        days.terminal_id,
        days.first_day,
        days.day,
        sum(daily_totals.tx_count) over last_1d as tx_count_1d,
        sum(daily_totals.tx_count) over last_7d as tx_count_7d,
        sum(daily_totals.tx_count) over last_30d as tx_count_30d,
        coalesce(sum(daily_labels.labelled_tx_count) over last_1d, 0) as labelled_tx_count_1d,
        coalesce(sum(daily_labels.labelled_tx_count) over last_7d, 0) as labelled_tx_count_7d,
        coalesce(sum(daily_labels.labelled_tx_count) over last_30d, 0) as labelled_tx_count_30d,
        sum(daily_labels.fraud_count) over last_1d as fraud_count_1d,
        sum(daily_labels.fraud_count) over last_7d as fraud_count_7d,
        sum(daily_labels.fraud_count) over last_30d as fraud_count_30d
    from days
    left join daily_totals
        on days.terminal_id = daily_totals.terminal_id and days.day = daily_totals.tx_date
    left join daily_labels
        on days.terminal_id = daily_labels.terminal_id and days.day = daily_labels.matured_date
    window
        last_1d as (partition by days.terminal_id order by days.day rows between 1 preceding and 1 preceding),
        last_7d as (partition by days.terminal_id order by days.day rows between 7 preceding and 1 preceding),
        last_30d as (partition by days.terminal_id order by days.day rows between 30 preceding and 1 preceding)
),

-- Rows that came in when their day was over, and labels when the day they mature on was: the only ones that make a
-- window known later than it is true. What is known strictly before a midnight may be used at it, so what came in at
-- the midnight itself is late too.
late_totals as (
    select terminal_id, tx_date as entered_date, last_known_at
    from daily_totals
    where last_known_at >= {{ utc_midnight('tx_date + 1') }}
    union all
    select terminal_id, matured_date as entered_date, last_known_at
    from daily_labels
    where last_known_at >= {{ utc_midnight('matured_date + 1') }}
),

late_arrivals as (
    select
        late_totals.terminal_id,
        day::date as day,
        max(late_totals.last_known_at) + interval '1 microsecond' as known_from
    from late_totals
    cross join lateral generate_series(
        late_totals.entered_date + 1, late_totals.entered_date + 30, interval '1 day'
    ) as day
    group by late_totals.terminal_id, day
),

final as (
    select
        windows.terminal_id,
        {{ utc_midnight('windows.day') }} as event_timestamp,
        greatest({{ utc_midnight('windows.day') }}, late_arrivals.known_from) as created_timestamp,
        coalesce(tx_count_1d, 0)::bigint as terminal_tx_count_full_1d,
        coalesce(tx_count_7d, 0)::bigint as terminal_tx_count_full_7d,
        coalesce(tx_count_30d, 0)::bigint as terminal_tx_count_full_30d,
        labelled_tx_count_1d::bigint as terminal_labelled_tx_count_1d,
        labelled_tx_count_7d::bigint as terminal_labelled_tx_count_7d,
        labelled_tx_count_30d::bigint as terminal_labelled_tx_count_30d,
        coalesce(fraud_count_1d::double precision / nullif(labelled_tx_count_1d, 0), 0) as terminal_fraud_risk_1d,
        coalesce(fraud_count_7d::double precision / nullif(labelled_tx_count_7d, 0), 0) as terminal_fraud_risk_7d,
        coalesce(fraud_count_30d::double precision / nullif(labelled_tx_count_30d, 0), 0) as terminal_fraud_risk_30d
    from windows
    left join late_arrivals
        on windows.terminal_id = late_arrivals.terminal_id and windows.day = late_arrivals.day
    where windows.day > windows.first_day and windows.day > {{ changed_day }}
)

select * from final
