"""The words of the fraud model's card: purpose, use and limits; every figure on it is computed."""

from __future__ import annotations

from common_ml_utils.model_card import CardText

CARD = CardText(
    owner="fraud-risk",
    purpose=(
        "Gives the probability that a card payment is fraudulent, at the moment it is made, from the "
        "payment itself and from what was known then of the card's and the terminal's recent days."
    ),
    intended_use=(
        "Deciding on a payment: approve, review by an analyst, or decline, by the thresholds below and the"
        " policy of the fraud service.",
        "Ordering the analysts' queue, with the reason codes beside each payment.",
        "Scoring past days in batch, to see what a changed policy would have done.",
    ),
    not_for=(
        "Judging a person: a score is about one payment, and a card with a high score may belong to a "
        "victim.",
        "Decisions with legal effect, such as closing an account, without a person who looks at the case.",
        "Payments whose features can't be computed as described here; the service says so in its reply.",
    ),
    data=(
        "Card payments of a simulator (the Fraud Detection Handbook's design), not of real people. Frauds "
        "are of three kinds: very high amounts, terminals that are compromised for weeks, cards whose data"
        " leaked."
    ),
    fairness=(
        "The features hold nothing about a person but the card's own payments. Groups are looked at "
        "because errors cost more in some: high amounts, terminals of which little is known yet, payments "
        "at night. Base rates differ between them by design, so alert rates do; a low recall in a group is"
        " a blind spot."
    ),
    limits=(
        "Learned on simulated payments: before use on real ones it must be trained and measured on them.",
        "A fraud counts as known only after the label delay; a new pattern shows in the features of a "
        "terminal no sooner.",
        "A card's first payments and a new terminal have little history: see the group of new terminals.",
        "Declining changes what is seen: declined payments get no label, which later trainings must allow "
        "for.",
    ),
    rows="payments",
    positives="frauds",
)
