"""Where features come from: the tables that dbt publishes, and the request.

Each table has `event_timestamp`, from when a row is true, and `created_timestamp`, when the platform knew it.
FEATURE_STORE_SCHEMA_PREFIX goes before the schema's name, so that a test can stand beside the real tables.
"""

import os

from feast import Field, PushSource, RequestSource
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.types import Float64

SCHEMA = os.environ.get("FEATURE_STORE_SCHEMA_PREFIX", "") + "features"


def _feature_table(name: str, description: str) -> PostgreSQLSource:
    return PostgreSQLSource(
        name=name,
        table=f"{SCHEMA}.{name}",
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
        description=description,
    )


customer_daily_source = _feature_table("fct_customer_daily", "Customer x day: windows as of midnight (UTC).")
customer_today_source = _feature_table(
    "fct_customer_today", "Customer x moment of arrival: totals since midnight."
)
terminal_daily_source = _feature_table("fct_terminal_daily", "Terminal x day: windows as of midnight (UTC).")
terminal_today_source = _feature_table(
    "fct_terminal_today", "Terminal x moment of arrival: totals since midnight."
)
# The stream's processor writes these views' online rows; `store.push` writes the same ones.
customer_today_push = PushSource(
    name="customer_today_push",
    batch_source=customer_today_source,
    description="Totals of customers since midnight (UTC), as they change.",
)
terminal_today_push = PushSource(
    name="terminal_today_push",
    batch_source=terminal_today_source,
    description="Totals of terminals since midnight (UTC), as they change.",
)
subscriber_profile_source = _feature_table("fct_subscriber_profile", "Subscriber: the latest profile.")

# `tx_timestamp` is seconds since the epoch, so that an expression can compute with it.
transaction_request = RequestSource(
    name="transaction_request",
    schema=[Field(name="tx_amount", dtype=Float64), Field(name="tx_timestamp", dtype=Float64)],
    description="The transaction that a decision is asked for.",
)

viewer_taste_source = _feature_table(
    "fct_viewer_taste", "Viewer x day on which it changed: all ratings before midnight."
)
viewer_history_source = _feature_table(
    "fct_viewer_history", "Viewer x day on which it changed: the movies rated before midnight."
)
movie_profile_source = _feature_table("fct_movie_profile", "Movie: year and genres.")
movie_popularity_source = _feature_table(
    "fct_movie_popularity", "Movie x day on which it changed: all ratings before midnight."
)
recommendation_request = RequestSource(
    name="recommendation_request",
    schema=[Field(name="request_timestamp", dtype=Float64)],
    description="When a recommendation is asked for, in seconds since the epoch.",
)
