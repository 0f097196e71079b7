{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    indexes=[{'columns': ['customer_id', 'tx_date'], 'unique': true}],
    pre_hook="{{ forget_rows('tx_date >= ' ~ first_changed_day('transactions_fingerprint')) }}",
    post_hook=["{{ remember_built_days('transactions_fingerprint') }}", "analyze {{ this }}"]
) }}

with transactions as (
    select * from {{ ref('stg_transactions') }}
    where tx_date >= {{ first_changed_day('transactions_fingerprint') }}
),

final as (
    select
        customer_id,
        tx_date,
        count(*)::integer as tx_count,
        sum(tx_amount_cents)::bigint as tx_amount_cents,
        max(known_at) as last_known_at
    from transactions
    group by customer_id, tx_date
)

select * from final
