"""The assets that link the DAGs: one task publishes each, and its event starts the next DAG."""

from __future__ import annotations

from airflow.sdk import Asset

# The feature tables hold every landed day, and Feast's registry describes them.
FEATURE_TABLES = Asset("feature_tables")
# The gate has decided which fraud (churn) model is the champion: promoted or confirmed.
FRAUD_CHAMPION = Asset("fraud_champion")
CHURN_CHAMPION = Asset("churn_champion")
# A day's transactions are scored and decided; the event's extra holds the `date`.
FRAUD_BATCH_DECISIONS = Asset("fraud_batch_decisions")
