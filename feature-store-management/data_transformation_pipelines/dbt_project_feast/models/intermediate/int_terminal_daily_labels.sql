{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    indexes=[{'columns': ['terminal_id', 'tx_date'], 'unique': true}],
    pre_hook="{{ forget_rows('tx_date >= ' ~ first_changed_day(fingerprint_of_matured_labels())) }}",
    post_hook=["{{ remember_built_days(fingerprint_of_matured_labels()) }}", "analyze {{ this }}"]
) }}

with transactions as (
    select * from {{ ref('stg_transactions') }}
    where tx_date >= {{ first_changed_day(fingerprint_of_matured_labels()) }}
),

transaction_labels as (
    select * from {{ ref('stg_transaction_labels') }}
    where tx_date >= {{ first_changed_day(fingerprint_of_matured_labels()) }}
),

maturity as (
    select * from {{ ref('label_maturity') }} where label_name = 'fraud'
),

daily_labels as (
    select
        transactions.terminal_id,
        transactions.tx_date,
        count(*)::integer as labelled_tx_count,
        sum(transaction_labels.is_fraud)::integer as fraud_count,
        max(greatest(transactions.known_at, transaction_labels.label_known_at)) as last_known_at
    from transactions
    inner join transaction_labels using (transaction_id)
    group by transactions.terminal_id, transactions.tx_date
),

-- Moving a day's labels by the delay turns the window [D - delay - N, D - delay) into [D - N, D).
final as (
    select
        daily_labels.terminal_id,
        daily_labels.tx_date,
        daily_labels.tx_date + maturity.delay_days as matured_date,
        daily_labels.labelled_tx_count,
        daily_labels.fraud_count,
        daily_labels.last_known_at
    from daily_labels
    cross join maturity
)

select * from final
