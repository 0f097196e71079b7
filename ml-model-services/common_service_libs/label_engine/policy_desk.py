"""Policy and lists of a running service: taken over when their files change, kept when something is wrong.

A policy is put in service only if it is read without a problem, its examples hold, and it fits the bundle in
service; otherwise the one before stays. Every policy that was in service is kept, on the local disk and in
`decisions.label_policies`, so that its decisions can be replayed later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from common_service_libs.errors import PolicyError
from common_service_libs.label_engine.lists import NO_LISTS, EntityLists, parse_lists
from common_service_libs.label_engine.policy import Policy, load_policy, parse_policy
from common_service_libs.label_engine.policy_archive import PolicyArchive
from common_service_libs.label_engine.watched_file import FileWatcher, WatchedFile
from common_service_libs.metrics import ServiceMetrics

logger = logging.getLogger(__name__)


class PolicyDesk:
    """Follows the policy file and the lists file of one service.

    `folder` is the service's own on the local disk, `conninfo` of the decision database, or None.
    """

    def __init__(
        self,
        policy_file: Path,
        lists_file: Path | None,
        *,
        folder: Path,
        conninfo: str | None,
        poll_seconds: float,
        metrics: ServiceMetrics,
    ) -> None:
        self._metrics = metrics
        self._archive = PolicyArchive(folder / "policies", conninfo)
        self._policy_file = WatchedFile(
            policy_file,
            folder / "last_good_policy.yaml",
            take=self._take_policy,
            on_outcome=lambda outcome: metrics.policy_swaps.at(outcome).inc(),
        )
        self._lists_file = (
            None
            if lists_file is None
            else WatchedFile(
                lists_file,
                folder / f"last_good_lists{lists_file.suffix.lower()}",
                take=self._take_lists,
                on_outcome=lambda outcome: metrics.list_loads.at(outcome).inc(),
            )
        )
        self._adopt: Callable[[Policy], None] = lambda policy: None
        self._offer_lists: Callable[[EntityLists], None] = lambda lists: None
        polls = [self._policy_file.poll, self._archive.flush]
        if self._lists_file is not None:
            polls.insert(0, self._lists_file.poll)
        self._watcher = FileWatcher(polls, poll_seconds=poll_seconds)
        self.lists = NO_LISTS
        self.policy = self._first(policy_file)
        self._in_service(self.policy)

    def _first(self, path: Path) -> Policy:
        """Return the policy to begin with: the last good one, where the file is broken or not tried yet."""
        kept = self._kept(path.name)
        try:
            policy = load_policy(path)
        except PolicyError as error:
            if kept is None:
                raise
            logger.error(
                "the policy file is broken, the last good policy goes on",
                extra={"reason": str(error), "version": kept.version, "sha256": kept.sha256},
            )
            self._metrics.policy_swaps.at("restored").inc()
            return kept
        same_work = kept is not None and (kept.name, kept.feature_service) == (
            policy.name, policy.feature_service,
        )  # fmt: skip
        if kept is not None and same_work and kept.sha256 != policy.sha256:
            return kept  # the changed file is tried on the bundle in service, like any change
        self._policy_file.settle(policy.sha256)
        self._policy_file.keep(policy.content)
        return policy

    def _kept(self, file: str) -> Policy | None:
        content = self._policy_file.kept()
        if content is None:
            return None
        try:
            return parse_policy(content, file)
        except PolicyError as error:
            logger.error("the last good policy cannot be used again", extra={"reason": str(error)})
            return None

    def open(self, *, adopt: Callable[[Policy], None], offer_lists: Callable[[EntityLists], None]) -> None:
        """Take over what the files say now, and begin to follow them in a thread of its own.

        `adopt` puts a policy in service, or raises PolicyError if it does not fit the bundle there;
        `offer_lists` is given the lists.
        """
        self._adopt, self._offer_lists = adopt, offer_lists
        if self._lists_file is not None:
            self._lists_file.poll()
            if self.lists is NO_LISTS:
                self._lists_file.restore()
        self._policy_file.poll()
        self._watcher.start()

    def poll(self) -> None:
        """Look at both files now."""
        if self._lists_file is not None:
            self._lists_file.poll()
        self._policy_file.poll()

    def close(self) -> None:
        """Stop following."""
        self._watcher.stop()

    def _take_policy(self, content: bytes, file: str, sha256: str) -> None:
        if sha256 == self.policy.sha256:
            return
        policy = parse_policy(content, file)
        if policy.name != self.policy.name:
            raise PolicyError(f"{file}: this is the policy {policy.name}, in service is {self.policy.name}")
        self._adopt(policy)
        self._in_service(policy)

    def _in_service(self, policy: Policy) -> None:
        self.policy = policy
        self._metrics.policy.clear()
        self._metrics.policy.labels(policy.name, str(policy.version), policy.sha256).set(1)
        self._archive.keep(policy)

    def _take_lists(self, content: bytes, file: str, sha256: str) -> None:
        self.lists = lists = parse_lists(content, file, sha256)
        self._offer_lists(lists)
        self._metrics.list_entries.clear()
        for name, size in lists.sizes().items():
            self._metrics.list_entries.labels(name).set(size)
