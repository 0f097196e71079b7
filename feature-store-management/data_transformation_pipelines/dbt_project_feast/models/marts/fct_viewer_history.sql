{{ config(
    materialized='table',
    schema='features',
    indexes=[{'columns': ['viewer_id', 'event_timestamp'], 'unique': true}, {'columns': ['event_timestamp']}]
) }}

{%- set most_movies = var('viewer_history_most_movies') -%}

with ratings as (
    select * from {{ ref('stg_ratings') }}
),

-- All movies of a viewer, oldest rating first; a history is a slice of it.
viewers as (
    select
        viewer_id,
        array_agg(movie_id order by event_timestamp, movie_id) as movie_ids
    from ratings
    group by viewer_id
),

days as (
    select
        viewer_id,
        rated_date,
        (sum(count(*)) over so_far)::integer as rating_count,
        max(max(known_at)) over so_far as last_known_at
    from ratings
    group by viewer_id, rated_date
    window so_far as (partition by viewer_id order by rated_date)
),

final as (
    select
        days.viewer_id,
        {{ utc_midnight('days.rated_date + 1') }} as event_timestamp,
        {{ rating_row_known_at('days.rated_date + 1', 'days.last_known_at') }} as created_timestamp,
        array_to_string(
            viewers.movie_ids[greatest(1, days.rating_count - {{ most_movies - 1 }}):days.rating_count], ','
        ) as viewer_rated_movie_ids
    from days
    inner join viewers using (viewer_id)
)

select * from final
