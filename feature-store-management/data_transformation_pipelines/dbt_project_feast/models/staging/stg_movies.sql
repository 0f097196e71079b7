with movies as (
    select * from {{ source('raw', 'movies') }}
),

final as (
    select
        movie_id,
        title,
        year::bigint as movie_year,
        string_to_array(genres, '|') as genres
    from movies
)

select * from final
