{{ config(
    materialized='table',
    schema='labels',
    indexes=[{'columns': ['viewer_id', 'movie_id'], 'unique': true}, {'columns': ['event_timestamp']}]
) }}

with ratings as (
    select * from {{ ref('stg_ratings') }}
),

final as (
    select
        viewer_id,
        movie_id,
        half_stars::double precision / 2 as rating,
        event_timestamp,
        known_at as label_known_at
    from ratings
)

select * from final
