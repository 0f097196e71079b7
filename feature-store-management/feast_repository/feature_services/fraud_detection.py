"""What the fraud model reads: 18 features of a card transaction."""

from contract_definitions import feature_service
from feature_views.terminal_daily import terminal_daily
from feature_views.transaction_on_demand import transaction_on_demand

fraud_detection_v1 = feature_service(
    "fraud_detection_v1",
    {"transaction_on_demand": transaction_on_demand, "terminal_daily": terminal_daily},
    "A card transaction, from what was known strictly before it. Ask as of its own time.",
)
