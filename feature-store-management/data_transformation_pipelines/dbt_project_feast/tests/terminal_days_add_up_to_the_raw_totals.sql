-- A day's row counts the day before: all rows together hold every transaction once, and every label that has matured.
with raw_totals as (
    select coalesce(sum(tx_count), 0) as tx_count from {{ ref('int_transaction_days') }}
),

matured_labels as (
    select coalesce(sum(labelled_tx_count), 0) as labelled_tx_count
    from {{ ref('int_terminal_daily_labels') }}
    where matured_date <= (select max(tx_date) from {{ ref('int_transaction_days') }})
),

daily_totals as (
    select
        coalesce(sum(terminal_tx_count_full_1d), 0) as tx_count,
        coalesce(sum(terminal_labelled_tx_count_1d), 0) as labelled_tx_count
    from {{ ref('fct_terminal_daily') }}
),

final as (
    select
        raw_totals.tx_count as raw_count,
        daily_totals.tx_count as daily_count,
        matured_labels.labelled_tx_count as matured_labels,
        daily_totals.labelled_tx_count as daily_labels
    from raw_totals
    cross join matured_labels
    cross join daily_totals
    where (raw_totals.tx_count, matured_labels.labelled_tx_count)
        is distinct from (daily_totals.tx_count, daily_totals.labelled_tx_count)
)

select * from final
