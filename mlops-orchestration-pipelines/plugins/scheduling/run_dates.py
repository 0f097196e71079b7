"""Which moment and which day a run works on, as templates of an operator's arguments (UTC).

A run started by a clock or by hand has a logical date; a run started by an asset has none, only the moment
after which it may run. Both mean "now" to the run, and the last full day is the day before it.
"""

from __future__ import annotations

_MOMENT = "(dag_run.logical_date or dag_run.run_after)"

# ISO 8601, `2026-11-21T01:00:00+00:00`.
RUN_MOMENT = "{{ " + _MOMENT + ".isoformat() }}"
# The midnight that ends the last full day: what a run may know.
AS_OF = "{{ params.as_of or (" + _MOMENT + " | ds) ~ 'T00:00:00+00:00' }}"
# The day to score: the parameter `date`, else the last full day.
LAST_FULL_DAY = "{{ params.date or (" + _MOMENT + " - macros.timedelta(days=1)) | ds }}"

# The day to check: the parameter `date`, else the day named by the newest event that started the run (a day
# scored again long after is checked again), else the last full day. A run's events come in no order.
EVENT_DAY = (
    "{% set events = triggering_asset_events.values() | sum(start=[]) | sort(attribute='timestamp') %}"
    "{% set days = events | map(attribute='extra.date') | list %}"
    "{{ params.date or days | last | default((" + _MOMENT + " - macros.timedelta(days=1)) | ds, true) }}"
)
