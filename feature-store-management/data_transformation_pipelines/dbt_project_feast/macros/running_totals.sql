{#
  The tables of running totals have two writers: the stream adds rows as transactions arrive, dbt rebuilds a day from
  its raw rows. A row belongs to the day before its event_timestamp, which is a microsecond after a transaction: a
  day's rows are those in (midnight, next midnight]. dbt owns the days it has raw rows of, or had when it last built
  the table; rows of any other day are the stream's, and stay.
#}

{% macro day_of_running_total() -%}
  ((event_timestamp - interval '1 microsecond') at time zone 'UTC')::date
{%- endmacro %}

{% macro days_of_raw_rows() -%}
  select tx_date from {{ ref('int_transaction_days') }}
  union all
  select tx_date from {{ built_days() }} where model = '{{ this.identifier }}'
{%- endmacro %}

{# The pre-hook of an incremental build: removes the rows of the days that will be rebuilt. #}
{% macro forget_running_totals(fingerprint) -%}
  {{ forget_rows(
      'event_timestamp > ' ~ utc_midnight(first_changed_day(fingerprint))
      ~ ' and ' ~ day_of_running_total() ~ ' in (' ~ days_of_raw_rows() ~ ')'
  ) }}
{%- endmacro %}

{# In a full build, which writes a new table: the stream's rows of the old one. #}
{% macro and_streamed_rows(columns) -%}
  {%- if execute and not is_incremental() and load_relation(this) is not none -%}
    union all
    select {{ columns | join(', ') }} from {{ this }}
    where {{ day_of_running_total() }} not in ({{ days_of_raw_rows() }})
  {%- endif -%}
{%- endmacro %}
