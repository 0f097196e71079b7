"""The one table of label delays: dbt's seed `label_maturity.csv`, read where labels get their `known_at`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

SEED = Path(__file__).parents[1] / "dbt_project_feast" / "seeds" / "label_maturity.csv"


class LabelMaturityError(Exception):
    """The table of delays can't be read or lacks a label."""


@dataclass(frozen=True)
class LabelMaturity:
    """How many days after the event a label is known, by which version of the policy."""

    label_name: str
    delay_days: int
    policy_version: int

    @property
    def delay(self) -> timedelta:
        """The delay as a duration."""
        return timedelta(days=self.delay_days)


def read_label_maturity(label_name: str, path: Path = SEED) -> LabelMaturity:
    """Return the delay of a label; LabelMaturityError where the table does not state exactly one."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("label_name") == label_name]
    except OSError as error:
        raise LabelMaturityError(f"the table of label delays can't be read: {error}") from None
    if len(rows) != 1:
        raise LabelMaturityError(f"{path.name} has {len(rows)} rows for label {label_name!r} instead of one")
    try:
        maturity = LabelMaturity(label_name, int(rows[0]["delay_days"]), int(rows[0]["policy_version"]))
    except (KeyError, TypeError, ValueError):
        raise LabelMaturityError(
            f"{path.name}: label {label_name!r} needs whole numbers delay_days and policy_version"
        ) from None
    if maturity.delay_days < 0:
        raise LabelMaturityError(f"{path.name}: label {label_name!r} has a negative delay")
    return maturity
