"""What is computed at request time: full days plus today so far plus the transaction itself."""

from contract_definitions import on_demand_view
from data_sources import transaction_request
from feature_contract import load_contract
from feature_views.customer_daily import customer_daily
from feature_views.customer_today import customer_today
from feature_views.terminal_daily import terminal_daily
from feature_views.terminal_today import terminal_today

transaction_on_demand = on_demand_view(
    load_contract("fraud_detection_v1"),
    [customer_daily, customer_today, terminal_daily, terminal_today],
    transaction_request,
    "Windows up to and including the transaction, and when it happened.",
)
