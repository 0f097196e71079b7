with subscriber_labels as (
    select * from {{ source('raw', 'subscriber_labels') }}
),

final as (
    select
        subscriber_id,
        event_timestamp,
        churned,
        known_at as label_known_at
    from subscriber_labels
)

select * from final
