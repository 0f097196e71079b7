with transactions as (
    select * from {{ source('raw', 'transactions') }}
),

final as (
    select
        transaction_id,
        customer_id,
        terminal_id,
        tx_date,
        tx_datetime as event_timestamp,
        tx_amount,
        -- Sums of whole cents are exact in any order, so a rebuild gives the same bits.
        (tx_amount * 100)::bigint as tx_amount_cents,
        known_at
    from transactions
)

select * from final
