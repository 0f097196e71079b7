{{ config(materialized='table', indexes=[{'columns': ['movie_id', 'rated_date'], 'unique': true}]) }}

with ratings as (
    select * from {{ ref('stg_ratings') }}
),

final as (
    select
        movie_id,
        rated_date,
        count(*) as rating_count,
        sum(half_stars)::bigint as half_stars,
        max(known_at) as last_known_at
    from ratings
    group by movie_id, rated_date
)

select * from final
