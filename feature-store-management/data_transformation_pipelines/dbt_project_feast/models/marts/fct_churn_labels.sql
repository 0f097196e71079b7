{{ config(
    materialized='table',
    schema='labels',
    indexes=[{'columns': ['subscriber_id'], 'unique': true}]
) }}

with subscriber_labels as (
    select * from {{ ref('stg_subscriber_labels') }}
),

final as (
    select
        subscriber_id,
        event_timestamp,
        churned,
        label_known_at
    from subscriber_labels
)

select * from final
