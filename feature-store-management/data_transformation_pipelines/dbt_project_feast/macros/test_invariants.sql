{# Every condition is true, and not null, in every row. One pass over the table for all of them. #}
{% test invariants(model, conditions) %}
select *
from {{ model }}
where {% for condition in conditions %}
  ({{ condition }}) is not true{{ ' or' if not loop.last }}
{%- endfor %}
{% endtest %}
