{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    schema='labels',
    indexes=[{'columns': ['transaction_id'], 'unique': true}, {'columns': ['event_timestamp']}],
    pre_hook="{{ forget_rows('tx_date >= ' ~ first_changed_day(fingerprint_of_labels())) }}",
    post_hook="{{ remember_built_days(fingerprint_of_labels()) }}"
) }}

with transactions as (
    select * from {{ ref('stg_transactions') }}
    where tx_date >= {{ first_changed_day(fingerprint_of_labels()) }}
),

transaction_labels as (
    select * from {{ ref('stg_transaction_labels') }}
    where tx_date >= {{ first_changed_day(fingerprint_of_labels()) }}
),

final as (
    select
        transactions.transaction_id,
        transactions.customer_id,
        transactions.terminal_id,
        transactions.tx_amount,
        transactions.event_timestamp,
        transactions.tx_date,
        transaction_labels.is_fraud,
        transaction_labels.label_known_at
    from transactions
    inner join transaction_labels using (transaction_id)
)

select * from final
