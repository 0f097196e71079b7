"""The blocking door to a feature service's vectors: for batch scoring, notebooks and checks of parity.

with OnlineFeatureReader(contract, "mlops_platform", RedisSocket("127.0.0.1", 6379)) as reader:
    table = reader.read_many(
        {"customer_id": [596, 597], "terminal_id": [3156, 3156]},
        as_of=time.time(),
        request={"tx_amount": np.array([57.16, 81.5]), "tx_timestamp": time.time()},
    )
table.columns["terminal_fraud_risk_7d"], table.status_names("terminal_fraud_risk_7d")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feast_layout import EntityValue
from common_service_libs.feature_contract import FeatureContract
from common_service_libs.feature_table import FeatureTable, TableBuilder, joined
from common_service_libs.feature_vector import FeatureVector, VectorBuilder
from common_service_libs.online_store import FeatureReader
from common_service_libs.redis_socket import RedisSocket

ROWS_A_ROUND_TRIP = 1000


class OnlineFeatureReader:
    """Reads the vectors of one feature contract from one online store; owns the connection it is given."""

    def __init__(self, contract: FeatureContract, project: str, store: RedisSocket) -> None:
        self._reader = FeatureReader(contract, project)
        self._vectors = VectorBuilder(contract)
        self._tables = TableBuilder(contract)
        self._store = store

    def read(
        self, entity_ids: Mapping[str, EntityValue], as_of: float, request: Mapping[str, float] | None = None
    ) -> FeatureVector:
        """Return the vector of one case (join key -> value) as of `as_of`, epoch seconds; one round trip.

        Raises OnlineStoreError if the store does not answer: nobody waits for a reply, so nothing is guessed.
        """
        online = self._reader.decode(self._store.call(*self._reader.command(entity_ids)), as_of)
        if online.unavailable:
            raise OnlineStoreError("the online store answers a read with an error")
        return self._vectors.build(online, request or {})

    def read_many(
        self,
        entity_ids: Mapping[str, Sequence[EntityValue] | np.ndarray],
        as_of: Any,
        request: Mapping[str, Any] | None = None,
    ) -> FeatureTable:
        """Return the vectors of many cases as columns, `ROWS_A_ROUND_TRIP` of them a round trip.

        `as_of` and each value of `request` is one number for all cases or an array of one a case. Raises
        OnlineStoreError if the store does not answer, ValueError if the numbers of values differ.
        """
        ids = {key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in entity_ids.items()}
        rows = len(next(iter(ids.values())))
        given = {"as_of": as_of, **(request or {})}
        if wrong := sorted(
            name for name, value in given.items() if np.size(value) != rows and np.ndim(value)
        ):
            raise ValueError(f"one value a case, or one for all of the {rows}: {', '.join(wrong)}")
        return joined(
            [
                self._part(ids, given, slice(at, at + ROWS_A_ROUND_TRIP))
                for at in range(0, max(rows, 1), ROWS_A_ROUND_TRIP)
            ]
        )

    def _part(
        self, ids: Mapping[str, Sequence[EntityValue]], given: Mapping[str, Any], part: slice
    ) -> FeatureTable:
        payload, expected, _ = self._reader.commands({key: values[part] for key, values in ids.items()})
        values = {name: value[part] if np.ndim(value) else value for name, value in given.items()}
        replies = self._store.call(payload, expected) if expected else []
        online = self._reader.decode_many(replies, values.pop("as_of"))
        return self._tables.build(online, values)

    def close(self) -> None:
        """Give the connection up."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
