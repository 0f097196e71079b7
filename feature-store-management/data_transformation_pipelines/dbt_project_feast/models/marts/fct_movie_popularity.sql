{{ config(
    materialized='table',
    schema='features',
    indexes=[{'columns': ['movie_id', 'event_timestamp'], 'unique': true}, {'columns': ['event_timestamp']}]
) }}

{#- The smoothed mean starts at the stars of an average movie and follows the ratings as they come: as if this many
    viewers had given that many stars before anyone did. A constant, for the mean of all movies moves every day, and
    every movie's value would move with it. -#}
{%- set prior_ratings = 10 -%}
{%- set prior_stars = 3.5 %}

with daily_ratings as (
    select * from {{ ref('int_movie_daily_ratings') }}
),

{{ rating_windows('movie_id', ['rating_count', 'half_stars']) }},

final as (
    select
        movie_id,
        {{ utc_midnight('day') }} as event_timestamp,
        {{ rating_row_known_at('day', 'last_known_at') }} as created_timestamp,
        rating_count_all::bigint as movie_rating_count,
        rating_count_30d as movie_rating_count_30d,
        rating_count_365d as movie_rating_count_365d,
        half_stars_all::double precision / 2 / rating_count_all as movie_rating_mean,
        (half_stars_all::double precision / 2 + {{ prior_ratings * prior_stars }})
        / (rating_count_all::double precision + {{ prior_ratings }}) as movie_rating_mean_smoothed
    from windows
    where is_change
)

select * from final
