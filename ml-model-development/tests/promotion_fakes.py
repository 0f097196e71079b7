"""A ledger and a registry in memory, for the tests of promotion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from common_ml_utils.mlflow_utils import CHAMPION, PREVIOUS, STAGING, RegisteredBundle
from common_ml_utils.promotion.ledger import GENESIS, check_chain, entry_hash
from common_ml_utils.release_bundle import ReleaseBundle

START = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass
class Book:
    """The ledger in memory, with the real chain; one day a decision."""

    entries: list[dict[str, Any]] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        check_chain(self.entries)
        return list(self.entries)

    @contextmanager
    def appending(
        self,
        model_name: str,
        decision: str,
        entry: Mapping[str, Any],
        after: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[str]:
        decided_at = START + timedelta(days=len(self.entries))
        full = {
            **entry,
            "model_name": model_name,
            "decision": decision,
            "decided_at": decided_at.isoformat(),
        }
        previous = self.entries[-1]["hash"] if self.entries else GENESIS
        digest = entry_hash(previous, full)
        yield digest
        self.entries.append(
            {
                "seq": len(self.entries) + 1,
                "model_name": model_name,
                "decision": decision,
                "decided_at": decided_at,
                "entry": full,
                "prev_hash": previous,
                "hash": digest,
            }
        )

    def add(self, model_name: str, decision: str, **entry: Any) -> None:
        with self.appending(model_name, decision, entry):
            pass


@dataclass
class Shelf:
    """The registry in memory: versions and aliases of one model."""

    versions: list[RegisteredBundle[ReleaseBundle]] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)

    def stage(self, name: str, bundle: ReleaseBundle) -> RegisteredBundle[ReleaseBundle]:
        self.versions.append(RegisteredBundle(name, len(self.versions) + 1, bundle))
        self.aliases[STAGING] = len(self.versions)
        return self.versions[-1]

    def load(self, model_name: str, alias: str) -> RegisteredBundle[ReleaseBundle] | None:
        return self.versions[self.aliases[alias] - 1] if alias in self.aliases else None

    def version_of(self, model_name: str, alias: str) -> int | None:
        return self.aliases.get(alias)

    def promote(self, model_name: str, version: int) -> None:
        if CHAMPION in self.aliases:
            self.aliases[PREVIOUS] = self.aliases[CHAMPION]
        self.aliases[CHAMPION] = version
