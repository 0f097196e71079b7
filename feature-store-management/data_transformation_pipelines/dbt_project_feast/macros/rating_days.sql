{#
  Sparse windows that are exact all the same. A window [D-N, D) changes only at the midnight after a day with ratings
  (they come in) and N days later (they leave). With a row at each of those midnights, the newest row not later than a
  moment holds the value of that moment, however long ago it was written: nothing changed since.

  `rating_windows` gives, from `daily_ratings` (totals by `entity` and `rated_date`), the step `windows`: those midnights
  (`day`, where `is_change`) and, of each of `columns`, the total of all days before (`<column>_all`); of
  `rating_count` also those of the last 30 and 365 days. Days with ratings are rows too, for a frame to find them.
#}
{% macro rating_windows(entity, columns) -%}
change_days as (
    select
        {{ entity }},
        rated_date + days_later as day,
        max(days_later) > 0 as is_change
    from daily_ratings
    cross join unnest(array[0, 1, 31, 366]) as days_later
    group by {{ entity }}, day
),

windows as (
    select
        change_days.{{ entity }},
        change_days.day,
        change_days.is_change,
        {%- for column in columns %}
        sum(daily_ratings.{{ column }}) over before_day as {{ column }}_all,
        {%- endfor %}
        coalesce(sum(daily_ratings.rating_count) over last_30d, 0)::bigint as rating_count_30d,
        coalesce(sum(daily_ratings.rating_count) over last_365d, 0)::bigint as rating_count_365d,
        max(daily_ratings.last_known_at) over before_day as last_known_at
    from change_days
    left join daily_ratings
        on change_days.{{ entity }} = daily_ratings.{{ entity }} and change_days.day = daily_ratings.rated_date
    window
        before_day as (
            partition by change_days.{{ entity }} order by change_days.day
            range between unbounded preceding and interval '1 day' preceding
        ),
        last_30d as (
            partition by change_days.{{ entity }} order by change_days.day
            range between interval '30 days' preceding and interval '1 day' preceding
        ),
        last_365d as (
            partition by change_days.{{ entity }} order by change_days.day
            range between interval '365 days' preceding and interval '1 day' preceding
        )
)
{%- endmacro %}

{# From when a row about midnight `day` was known: a microsecond after its last rating, and not before midnight. #}
{% macro rating_row_known_at(day, last_known_at) -%}
  greatest({{ utc_midnight(day) }}, {{ last_known_at }} + interval '1 microsecond')
{%- endmacro %}
