"""A day's transactions as a conversation: ask for decisions, then let the stream know, again and again.

Transactions whose features cannot depend on one another are asked for together: none of them shares a
customer or terminal with an earlier one of the group. Only when all of a group are decided are they sent to
the topic, and only when the stream processor has applied them does the next group begin. So each decision
sees exactly what happened strictly before it, without a pause for every single transaction.
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from kafka import KafkaProducer
from tqdm import tqdm

from local_stack.demo.requests import call
from local_stack.transactions import Transaction, publish

LARGEST_GROUP = 256
CLIENTS = 4
APPLIED_SECONDS = 60.0
POLL_SECONDS = 0.02


def independent_groups(
    transactions: Sequence[Transaction], largest: int = LARGEST_GROUP
) -> Iterator[list[Transaction]]:
    """Cut transactions, in order of time, into groups in which none depends on another.

    Simultaneous ones do not see each other, so they share a group even with the same customer, and a group
    is never cut between them.
    """
    group: list[Transaction] = []
    customers: dict[int, datetime] = {}
    terminals: dict[int, datetime] = {}
    for one in transactions:
        seen = min(customers.get(one.customer_id, one.at), terminals.get(one.terminal_id, one.at))
        full = len(group) >= largest and group[-1].at < one.at
        if seen < one.at or full:
            # Those of the same moment must be asked before any of them is applied.
            kept = [other for other in group if other.at < one.at]
            yield kept
            group = group[len(kept) :]
            customers = {other.customer_id: other.at for other in group}
            terminals = {other.terminal_id: other.at for other in group}
        group.append(one)
        customers.setdefault(one.customer_id, one.at)
        terminals.setdefault(one.terminal_id, one.at)
    if group:
        yield group


def metric_sum(page: str, name: str) -> float:
    """Return the sum of a metric over its labels in a Prometheus text page; 0.0 where it is absent.

    >>> metric_sum('a_total{view="x"} 2.0\\na_total{view="y"} 3.0\\nab_total 9.0', "a_total")
    5.0
    """
    pattern = re.compile(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", re.MULTILINE)
    return sum(float(value) for value in pattern.findall(page))


def read_page(url: str) -> str:
    """Return the text at `url`, past any proxy settings."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as reply:
        text: str = reply.read().decode()
    return text


@dataclass(frozen=True)
class Conversation:
    """Where to ask and where to send: the API, its key, the topic, and how many events are applied so far."""

    api_url: str
    api_key: str
    bootstrap_servers: str
    topic: str
    applied: Callable[[], float]

    def hold(self, transactions: Sequence[Transaction], description: str) -> int:
        """Ask and tell each transaction; returns the number of groups.

        Raises ApiError where a decision is refused and TimeoutError where the processor does not follow.
        """
        producer = KafkaProducer(bootstrap_servers=self.bootstrap_servers, acks="all", linger_ms=0)
        groups = 0
        begun = self.applied()
        try:
            with (
                ThreadPoolExecutor(CLIENTS) as clients,
                tqdm(total=len(transactions), desc=description, unit="tx", disable=None) as progress,
            ):
                sent = 0
                for group in independent_groups(transactions):
                    list(clients.map(self._ask, group))
                    publish(producer, self.topic, group)
                    sent += len(group)
                    self._wait(begun + sent)
                    groups += 1
                    progress.update(len(group))
        finally:
            producer.close()
        return groups

    def _ask(self, one: Transaction) -> None:
        call(f"{self.api_url}/predict", self.api_key, one.body())

    def _wait(self, wanted: float) -> None:
        deadline = time.monotonic() + APPLIED_SECONDS
        while (now := self.applied()) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the stream processor stands at {now:.0f} of {wanted:.0f} events")
            time.sleep(POLL_SECONDS)
