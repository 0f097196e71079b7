{{ config(
    materialized='table',
    schema='features',
    indexes=[{'columns': ['viewer_id', 'event_timestamp'], 'unique': true}, {'columns': ['event_timestamp']}]
) }}

{%- set columns = ['rating_count', 'half_stars'] -%}
{%- for name in main_genres() %}{% do columns.extend(['rating_count_' ~ name, 'half_stars_' ~ name]) %}{% endfor %}

with daily_ratings as (
    select * from {{ ref('int_viewer_daily_ratings') }}
),

{{ rating_windows('viewer_id', columns) }},

final as (
    select
        viewer_id,
        {{ utc_midnight('day') }} as event_timestamp,
        {{ rating_row_known_at('day', 'last_known_at') }} as created_timestamp,
        rating_count_all::bigint as viewer_rating_count,
        rating_count_30d as viewer_rating_count_30d,
        rating_count_365d as viewer_rating_count_365d,
        half_stars_all::double precision / 2 / rating_count_all as viewer_rating_mean
        {%- for name in main_genres() %},
        rating_count_{{ name }}_all::double precision / rating_count_all as viewer_rating_share_{{ name }}
        {%- endfor %}
        {%- for name in main_genres() %},
        half_stars_{{ name }}_all::double precision / 2
        / nullif(rating_count_{{ name }}_all, 0) as viewer_rating_mean_{{ name }}
        {%- endfor %}
    from windows
    where is_change
)

select * from final
