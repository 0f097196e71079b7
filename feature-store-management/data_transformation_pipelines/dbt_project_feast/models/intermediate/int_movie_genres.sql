{{ config(materialized='table', indexes=[{'columns': ['movie_id'], 'unique': true}]) }}

with movies as (
    select * from {{ ref('stg_movies') }}
),

final as (
    select
        movie_id,
        movie_year,
        cardinality(genres)::bigint as movie_genre_count
        {%- for name, genre in main_genres().items() %},
        ('{{ genre }}' = any(genres))::integer::bigint as movie_is_{{ name }}
        {%- endfor %}
    from movies
)

select * from final
