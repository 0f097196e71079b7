"""Brings the online store up to a moment."""

from __future__ import annotations

from typing import Any

from operators.root_command_operator import RootCommandOperator
from scheduling.run_dates import RUN_MOMENT


class FeastMaterializeOperator(RootCommandOperator):
    """Copies every feature row since the last materialization, up to `end` (UTC), to the online store.

    Safe to rerun: the online store keeps the newest row of an entity, whichever is written last.
    """

    def __init__(self, *, end: str = RUN_MOMENT, **kwargs: Any) -> None:
        super().__init__(
            root="feature-store-management",
            command=["scripts/run_feast_materialize_incremental.sh", end],
            **kwargs,
        )
