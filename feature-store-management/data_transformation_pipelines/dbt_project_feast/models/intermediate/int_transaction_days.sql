{{ config(materialized='table', indexes=[{'columns': ['tx_date'], 'unique': true}]) }}

with transactions as (
    select * from {{ ref('stg_transactions') }}
),

transaction_labels as (
    select * from {{ ref('stg_transaction_labels') }}
),

maturity as (
    select * from {{ ref('label_maturity') }} where label_name = 'fraud'
),

-- Every row hashed, the hashes of a day combined by exclusive or: independent of the order of rows.
transaction_days as (
    select
        tx_date,
        count(*) as tx_count,
        sum(tx_amount_cents)::bigint as tx_amount_cents,
        hash_record_extended(row(count(*), bit_xor(hash_record_extended(row(
            transaction_id, customer_id, terminal_id, event_timestamp, tx_amount_cents, tx_amount, known_at
        ), 0))), 0) as transactions_fingerprint
    from transactions
    group by tx_date
),

label_days as (
    select
        tx_date,
        hash_record_extended(row(count(*), bit_xor(hash_record_extended(row(
            transaction_id, is_fraud, label_known_at
        ), 0))), 0) as labels_fingerprint
    from transaction_labels
    group by tx_date
),

final as (
    select
        transaction_days.tx_date,
        transaction_days.tx_count,
        transaction_days.tx_amount_cents,
        transaction_days.transactions_fingerprint,
        coalesce(label_days.labels_fingerprint, 0) as labels_fingerprint,
        maturity.delay_days as label_delay_days
    from transaction_days
    left join label_days using (tx_date)
    cross join maturity
)

select * from final
