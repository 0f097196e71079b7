"""The words of the churn model's card: purpose, use and limits; every figure on it is computed."""

from __future__ import annotations

from common_ml_utils.model_card import CardText

CARD = CardText(
    owner="customer-retention",
    purpose=(
        "Gives the probability that a subscriber leaves within the label's period, from the profile at a "
        "snapshot: contract, services booked, charges, tenure and household."
    ),
    intended_use=(
        "Choosing whom to contact and whom to make an offer, by the thresholds below, which weigh what a "
        "subscriber is worth against what an action costs.",
        "Asking how the score differs under another contract or other charges (`python -m src.what_if`).",
    ),
    not_for=(
        "Setting prices, refusing service, or treating those worse who are likely to stay.",
        "Telling why someone leaves: reason codes say what moved the score, not what caused the leaving.",
        "Subscribers of another company or country without training and measuring on their data.",
    ),
    data=(
        "IBM's Telco churn set: 7,043 subscribers of a fictional company, one snapshot, about a quarter of"
        " whom left. There is no history of a subscriber, only the profile."
    ),
    fairness=(
        "Gender and age (senior citizen) are in the data; the groups below show whether the model serves "
        "them alike. More alerts for a group whose members do leave more often are wanted here, as an "
        "alert brings an offer; a lower recall would keep offers from people who leave just as often."
    ),
    limits=(
        "One snapshot: seasons, price changes and campaigns are not in it, and the holdout is of the same "
        "day.",
        "Expected values rest on assumed worth and success rates (`TRAINING_VALUES__*`), not on measured "
        "ones.",
        "The score assumes that nothing is done; what a contact or an offer changes must be measured by a "
        "trial.",
    ),
    rows="subscribers",
    positives="leavers",
    currency="USD",
)
