{#
  The ten genres with the most ratings: the part of a feature's name -> the genre as the source writes it.
  Each has at least 8 % of all ratings; the other nine would be columns of zeros for most viewers.
#}
{% macro main_genres() -%}
  {{ return({
    'action': 'Action',
    'adventure': 'Adventure',
    'children': 'Children',
    'comedy': 'Comedy',
    'crime': 'Crime',
    'drama': 'Drama',
    'fantasy': 'Fantasy',
    'romance': 'Romance',
    'scifi': 'Sci-Fi',
    'thriller': 'Thriller'
  }) }}
{%- endmacro %}
