with subscribers as (
    select * from {{ source('raw', 'subscribers') }}
),

final as (
    select
        subscriber_id,
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
        subscriber_total_charges_usd,
        snapshot_at as event_timestamp,
        known_at
    from subscribers
)

select * from final
