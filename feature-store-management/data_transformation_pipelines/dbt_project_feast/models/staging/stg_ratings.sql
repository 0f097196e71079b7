with ratings as (
    select * from {{ source('raw', 'ratings') }}
),

final as (
    select
        viewer_id,
        movie_id,
        rated_at as event_timestamp,
        (rated_at at time zone 'UTC')::date as rated_date,
        -- Sums of whole half stars are exact in any order, so a rebuild gives the same bits.
        (rating * 2)::bigint as half_stars,
        known_at
    from ratings
)

select * from final
