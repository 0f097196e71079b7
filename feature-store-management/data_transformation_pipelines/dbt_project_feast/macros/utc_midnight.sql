{# The instant (timestamptz) at which a date begins in UTC, whatever the session's time zone is. #}
{% macro utc_midnight(date) -%}
  (({{ date }})::timestamp at time zone 'UTC')
{%- endmacro %}
