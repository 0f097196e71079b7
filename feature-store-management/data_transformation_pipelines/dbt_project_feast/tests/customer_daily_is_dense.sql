-- Every customer seen so far has one row for every day after the first, up to the day after the last loaded one.
with customers as (
    select
        customer_id,
        min(tx_date) as first_day
    from {{ ref('int_customer_daily_totals') }}
    group by customer_id
),

expected as (
    select coalesce(sum((select max(tx_date) + 1 from {{ ref('int_transaction_days') }}) - first_day), 0) as row_count
    from customers
),

actual as (
    select count(*) as row_count from {{ ref('fct_customer_daily') }}
),

final as (
    select
        expected.row_count as expected_rows,
        actual.row_count as actual_rows
    from expected
    cross join actual
    where expected.row_count is distinct from actual.row_count
)

select * from final
