"""The assets that link the DAGs: one task publishes each, and its event starts the next DAG."""

from __future__ import annotations

from airflow.sdk import Asset

# The feature tables hold every landed day, and Feast's registry describes them.
FEATURE_TABLES = Asset("feature_tables")
# The gate has decided which model is the champion: promoted or confirmed.
FRAUD_CHAMPION = Asset("fraud_champion")
CHURN_CHAMPION = Asset("churn_champion")
RECOMMENDATION_CHAMPION = Asset("recommendation_champion")
# A day's transactions (subscribers) are scored and decided; the event's extra holds the `date`.
FRAUD_BATCH_DECISIONS = Asset("fraud_batch_decisions")
CHURN_BATCH_DECISIONS = Asset("churn_batch_decisions")
# Every viewer has movies recommended as of a day; the event's extra holds the `date`.
BATCH_RECOMMENDATIONS = Asset("batch_recommendations")
