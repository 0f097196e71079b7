{{ config(
    materialized='table',
    schema='features',
    indexes=[{'columns': ['subscriber_id'], 'unique': true}]
) }}

with subscribers as (
    select * from {{ ref('stg_subscribers') }}
),

final as (
    select
        subscriber_id,
        event_timestamp,
        -- A snapshot is taken at its own moment and seen from then on; one that came later, from after its arrival.
        case
            when known_at > event_timestamp then known_at + interval '1 microsecond'
            else event_timestamp
        end as created_timestamp,
        subscriber_is_female,
        subscriber_is_senior,
        subscriber_has_partner,
        subscriber_has_dependents,
        subscriber_tenure_months,
        subscriber_has_phone_service,
        subscriber_multiple_lines,
        subscriber_internet_service,
        subscriber_online_security,
        subscriber_online_backup,
        subscriber_device_protection,
        subscriber_tech_support,
        subscriber_streaming_tv,
        subscriber_streaming_movies,
        subscriber_contract,
        subscriber_has_paperless_billing,
        subscriber_payment_method,
        subscriber_monthly_charges_usd,
        subscriber_total_charges_usd
    from subscribers
)

select * from final
