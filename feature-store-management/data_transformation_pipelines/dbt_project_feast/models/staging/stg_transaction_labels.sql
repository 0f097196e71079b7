with transaction_labels as (
    select * from {{ source('raw', 'transaction_labels') }}
),

final as (
    select
        transaction_id,
        tx_date,
        is_fraud,
        known_at as label_known_at
    from transaction_labels
)

select * from final
