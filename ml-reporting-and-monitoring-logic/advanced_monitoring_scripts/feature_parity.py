"""Served features against the same features recomputed offline: equal bit for bit, or a mismatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from advanced_monitoring_scripts.errors import MonitoringError
from advanced_monitoring_scripts.served_vectors import ServedVector

EXAMPLES = 20


@dataclass(frozen=True)
class Mismatch:
    """One value that differs; null is None."""

    request_id: str
    feature: str
    served: float | str | None
    offline: float | str | None


@dataclass(frozen=True)
class Parity:
    """What a comparison found; `not_recomputed` counts vectors that the offline side has no row for."""

    vectors: int
    values: int
    mismatches: int
    not_recomputed: int
    by_feature: Mapping[str, int]
    examples: Sequence[Mismatch]

    @property
    def holds(self) -> bool:
        """Whether every value was recomputed to the same bits."""
        return self.mismatches == 0 and self.not_recomputed == 0


def compare(vectors: Sequence[ServedVector], offline: pd.DataFrame) -> Parity:
    """Compare each served value with the row of `offline` of the same `request_id`.

    Raises MonitoringError where the offline rows lack a served feature or hold a request twice.
    """
    names = list(vectors[0].features)
    if absent := [name for name in names if name not in offline]:
        raise MonitoringError(f"the recomputed rows have no column {', '.join(absent)}")
    if other := [vector.request_id for vector in vectors if list(vector.features) != names]:
        raise MonitoringError(f"decision {other[0]} has other features than {vectors[0].request_id}")
    if offline["request_id"].duplicated().any():
        raise MonitoringError("the recomputed rows hold a request twice")
    by_id = offline.set_index("request_id")
    ids = pd.Index([vector.request_id for vector in vectors])
    found = ids.isin(by_id.index)
    aligned = by_id.reindex(ids[found])
    kept = [vector for vector, there in zip(vectors, found, strict=True) if there]
    by_feature: dict[str, int] = {}
    examples: list[Mismatch] = []
    for name in names:
        served = [vector.features[name] for vector in kept]
        recomputed = [None if pd.isna(value) else value for value in aligned[name].tolist()]
        wrong = np.flatnonzero([one != other for one, other in zip(served, recomputed, strict=True)])
        by_feature[name] = len(wrong)
        examples += [
            Mismatch(kept[row].request_id, name, served[row], recomputed[row]) for row in wrong[:EXAMPLES]
        ]
    return Parity(
        vectors=len(vectors),
        values=len(vectors) * len(names),
        mismatches=sum(by_feature.values()),
        not_recomputed=int((~found).sum()),
        by_feature=by_feature,
        examples=examples[:EXAMPLES],
    )
