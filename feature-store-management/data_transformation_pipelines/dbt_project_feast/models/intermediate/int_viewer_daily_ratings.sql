{{ config(materialized='table', indexes=[{'columns': ['viewer_id', 'rated_date'], 'unique': true}]) }}

with ratings as (
    select * from {{ ref('stg_ratings') }}
),

movies as (
    select * from {{ ref('int_movie_genres') }}
),

final as (
    select
        ratings.viewer_id,
        ratings.rated_date,
        count(*) as rating_count,
        sum(ratings.half_stars)::bigint as half_stars,
        max(ratings.known_at) as last_known_at
        {%- for name in main_genres() %},
        sum(movies.movie_is_{{ name }})::bigint as rating_count_{{ name }},
        sum(movies.movie_is_{{ name }} * ratings.half_stars)::bigint as half_stars_{{ name }}
        {%- endfor %}
    from ratings
    inner join movies using (movie_id)
    group by ratings.viewer_id, ratings.rated_date
)

select * from final
