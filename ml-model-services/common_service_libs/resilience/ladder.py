"""The upper rungs of the degradation ladder: the online store, then the hot snapshot, then nothing.

What follows when nothing is known, declared defaults, rules only or a refusal, is the policy's to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feast_layout import EntityValue
from common_service_libs.online_store import FeatureReader, OnlineFeatures, Source
from common_service_libs.redis_link import RedisLink
from common_service_libs.resilience.hot_snapshot import HotSnapshot


class FeatureLadder:
    """Reads features from the store within its deadline, or at once from the snapshot while it is away."""

    def __init__(self, link: RedisLink, snapshot: HotSnapshot | None = None) -> None:
        self._link = link
        self._snapshot = snapshot

    async def read(
        self,
        reader: FeatureReader,
        entity_ids: Mapping[str, EntityValue],
        as_of: float,
        commands: Sequence[bytes] = (),
    ) -> tuple[OnlineFeatures, Sequence[Any]]:
        """Return the features of one case, whose `source` says where they come from, and other replies.

        `commands` (encoded) are sent in the same round trip; their replies are empty unless the store
        answered. Never raises for a silent store.
        """
        payload, expected = reader.command(entity_ids)
        others: Sequence[Any] = ()
        try:
            if commands:
                replies = await self._link.call(payload + b"".join(commands), expected + len(commands))
                replies, others = replies[:expected], replies[expected:]
            else:
                replies = await self._link.call(payload, expected)
        except OnlineStoreError:
            return self._away(reader, entity_ids, as_of), ()
        online = reader.decode(replies, as_of)
        if online.source is not Source.ONLINE:
            return self._away(reader, entity_ids, as_of), others
        if self._snapshot is not None:
            self._keep(self._snapshot, reader, entity_ids, online, replies)
        return online, others

    def _keep(
        self,
        snapshot: HotSnapshot,
        reader: FeatureReader,
        entity_ids: Mapping[str, EntityValue],
        online: OnlineFeatures,
        replies: Sequence[Any],
    ) -> None:
        keys = reader.row_keys(entity_ids)
        if online.complete is not None and reader.numbers_only:
            snapshot.keep(keys, replies)
            return
        for key, reply, worth in zip(keys, replies, reader.worth_keeping(replies), strict=True):
            if worth:
                snapshot.keep_if_small(key, reply)

    def _away(
        self, reader: FeatureReader, entity_ids: Mapping[str, EntityValue], as_of: float
    ) -> OnlineFeatures:
        if self._snapshot is None:
            return reader.nothing
        return reader.decode_rows(list(map(self._snapshot.get, reader.row_keys(entity_ids))), as_of)
