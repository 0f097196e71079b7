{#
  A schema has exactly the name that a model gives; dbt's own rule would put the target's name before it.
  FEATURE_STORE_SCHEMA_PREFIX goes before every name, so that a rehearsal or a test can stand beside the real tables.
#}
{% macro generate_schema_name(custom_schema_name, node) -%}
  {{ env_var('FEATURE_STORE_SCHEMA_PREFIX', '') }}{{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
