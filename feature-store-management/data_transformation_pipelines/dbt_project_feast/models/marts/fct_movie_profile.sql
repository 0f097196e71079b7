{{ config(
    materialized='table',
    schema='features',
    indexes=[{'columns': ['movie_id'], 'unique': true}]
) }}

with movies as (
    select * from {{ ref('int_movie_genres') }}
),

daily_ratings as (
    select * from {{ ref('int_movie_daily_ratings') }}
),

first_ratings as (
    select
        movie_id,
        min(rated_date) as first_day
    from daily_ratings
    group by movie_id
),

-- The source does not say since when it lists a movie. It did on the day of the first rating; a movie that nobody has
-- rated counts as listed since its year began, and one without even a year not at all.
catalogue as (
    select
        movies.*,
        case
            when first_ratings.first_day is not null then first_ratings.first_day
            when movies.movie_year is not null then make_date(greatest(movies.movie_year, 1970)::integer, 1, 1)
        end as listed_since
    from movies
    left join first_ratings using (movie_id)
),

final as (
    select
        movie_id,
        {{ utc_midnight('listed_since') }} as event_timestamp,
        {{ utc_midnight('listed_since') }} as created_timestamp,
        movie_year,
        movie_genre_count
        {%- for name in main_genres() %},
        movie_is_{{ name }}
        {%- endfor %}
    from catalogue
    where listed_since is not null
)

select * from final
