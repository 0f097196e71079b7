"""What two policies did with the same decisions, counted day by day. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common_service_libs.label_engine.costs import realized
from common_service_libs.label_engine.engine import Verdict

TOP_CARDS = 100


@dataclass
class Side:
    """What one policy did."""

    decisions: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    alerts: Counter[str] = field(default_factory=Counter)  # by day
    cards: dict[str, dict[Any, list[float]]] = field(default_factory=lambda: defaultdict(dict))
    cost_known: float = 0.0
    cost_expected: float = 0.0
    frauds_stopped: int = 0
    false_alerts: int = 0

    def add(self, day: str, verdict: Verdict, *, alert: bool) -> None:
        """Count a verdict."""
        self.decisions[verdict.decision] += 1
        self.rules.update(verdict.rules_fired)
        self.reasons.update(verdict.reason_codes)
        if alert:
            self.alerts[day] += 1

    def add_card(self, day: str, card: Any, score: float, fraud: bool) -> None:
        """Note a labelled alert: the card's highest score of the day, and whether it was compromised."""
        found = self.cards[day].get(card)
        if found is None:
            self.cards[day][card] = [score, float(fraud)]
        else:
            found[0], found[1] = max(found[0], score), max(found[1], float(fraud))

    def add_cost(
        self, decision: str, score: float | None, label: int | None, costs: Mapping[str, tuple[float, float]]
    ) -> None:
        """Add what a decision cost: known where its label is, and expected by the score."""
        if decision not in costs:
            return
        if label is not None:
            self.cost_known += realized(decision, label, costs)
        if score is not None:
            self.cost_expected += realized(decision, score, costs)


def card_precision(
    days: Mapping[str, Mapping[Any, Sequence[float]]], labelled_days: Sequence[str], top: int = TOP_CARDS
) -> float | None:
    """Return card precision@`top`: per day, the share of frauds among the `top` cards with the highest score.

    A card found compromised is left out on the following days. The divisor is `top` also on a day with fewer
    alerts, as in the Handbook. None without labelled days.

    >>> card_precision({"d1": {1: [0.9, 1.0], 2: [0.8, 0.0]}, "d2": {1: [0.9, 1.0]}}, ["d1", "d2"], top=2)
    0.25
    """
    if not labelled_days:
        return None
    compromised: set[Any] = set()
    shares = []
    for day in sorted(labelled_days):
        cards = {card: found for card, found in days.get(day, {}).items() if card not in compromised}
        ranked = sorted(cards.items(), key=lambda item: (-item[1][0], str(item[0])))[:top]
        detected = [card for card, found in ranked if found[1]]
        shares.append(len(detected) / top)
        compromised.update(detected)
    return sum(shares) / len(shares)
