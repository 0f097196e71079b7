{# A schema has exactly the name that a model gives; dbt's own rule would put the target's name before it. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
  {{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
