{#
  Incremental by day, from fingerprints instead of the clock.

  `int_transaction_days` holds one fingerprint of the raw rows a day. `intermediate.built_days` holds, for each
  incremental model, the fingerprints it was last built from, written in the model's own transaction. A model is
  rebuilt from the first day on which the two differ: new days, changed days, days that are gone, and whatever a
  run that failed half-way left undone. `--from-date` only moves that day back.

  An incremental model uses the three parts together:
    pre_hook   forget_rows(condition)      removes the rows that will be rebuilt
    the query  first_changed_day(...)      limits what is computed
    post_hook  remember_built_days(...)    notes what the table now stands for
  `fingerprint` is an expression over the columns of `int_transaction_days`.
#}

{% macro built_days() -%}
  {{ generate_schema_name('intermediate', none) }}.built_days
{%- endmacro %}

{% macro create_built_days() -%}
  create schema if not exists {{ generate_schema_name('intermediate', none) }};
  create table if not exists {{ built_days() }} (
    model text not null,
    tx_date date not null,
    fingerprint bigint not null,
    primary key (model, tx_date)
  )
{%- endmacro %}

{# A date as an SQL literal: -infinity in a full build, infinity where nothing changed. #}
{% macro first_changed_day(fingerprint) -%}
  {%- set days = ref('int_transaction_days') -%}
  {%- if not execute or not is_incremental() -%}
    {{ return("'-infinity'::date") }}
  {%- endif -%}
  {%- set query -%}
    select least(
      coalesce(min(coalesce(present.tx_date, built.tx_date)), 'infinity'),
      nullif('{{ var("from_date") }}', '')::date
    )::text
    from (select tx_date, {{ fingerprint }} as fingerprint from {{ days }}) as present
    full join (
      select tx_date, fingerprint from {{ built_days() }} where model = '{{ this.identifier }}'
    ) as built using (tx_date)
    where present.fingerprint is distinct from built.fingerprint
  {%- endset -%}
  {{ return("'" ~ run_query(query).columns[0].values()[0] ~ "'::date") }}
{%- endmacro %}

{% macro forget_rows(condition) -%}
  {%- if is_incremental() -%}
    delete from {{ this }} where {{ condition }}
  {%- endif -%}
{%- endmacro %}

{% macro remember_built_days(fingerprint) -%}
  delete from {{ built_days() }} where model = '{{ this.identifier }}';
  insert into {{ built_days() }} (model, tx_date, fingerprint)
  select '{{ this.identifier }}', tx_date, {{ fingerprint }} from {{ ref('int_transaction_days') }}
{%- endmacro %}

{# What a model depends on beside the transactions: their labels, and the delay after which labels count. #}
{% macro fingerprint_of_labels() -%}
  hash_record_extended(row(transactions_fingerprint, labels_fingerprint), 0)
{%- endmacro %}

{% macro fingerprint_of_matured_labels() -%}
  hash_record_extended(row(transactions_fingerprint, labels_fingerprint, label_delay_days), 0)
{%- endmacro %}
