{#
  Every condition is true, and not null, in every row, in one pass over the table. With `key`, the columns are the
  table's key: never null, and a unique index over just them makes the database itself refuse a second row.
  A failure names the broken condition and shows the row.
#}
{% test invariants(model, conditions=[], key=[]) %}
{%- set all_conditions = [] -%}
{%- for column in key -%}{%- do all_conditions.append(column ~ ' is not null') -%}{%- endfor -%}
{%- do all_conditions.extend(conditions) -%}

with broken_rows as (
  select
    case
      {%- for condition in all_conditions %}
      when ({{ condition }}) is not true then '{{ condition | replace("'", "''") }}'
      {%- endfor %}
    end as broken,
    to_jsonb(checked) as in_row
  from {{ model }} as checked
  where {% for condition in all_conditions -%}
    ({{ condition }}) is not true{{ ' or ' if not loop.last }}
  {%- endfor %}
),

missing_index as (
  select 'unique index on ({{ key | join(", ") }})' as broken, null::jsonb as in_row
  where {{ key | length }} > 0 and not exists (
    select 1
    from pg_index as i
    where i.indrelid = '{{ model }}'::regclass and i.indisunique and i.indisvalid and i.indpred is null
      and i.indexprs is null
      and array(
        select a.attname::text
        from pg_attribute as a
        where a.attrelid = i.indrelid and a.attnum = any (i.indkey)
        order by 1
      ) = array[{% for column in key | sort %}'{{ column }}'{{ ', ' if not loop.last }}{% endfor %}]::text[]
  )
)

select * from broken_rows
union all
select * from missing_index
{% endtest %}
