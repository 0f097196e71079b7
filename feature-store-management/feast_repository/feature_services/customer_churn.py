"""What the churn model reads: the profile of a subscriber."""

from contract_definitions import feature_service
from feature_views.subscriber_profile import subscriber_profile

customer_churn_v1 = feature_service(
    "customer_churn_v1",
    {"subscriber_profile": subscriber_profile},
    "A subscriber, as of the latest snapshot.",
)
