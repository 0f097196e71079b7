"""The churn model: P(a subscriber leaves), LightGBM on `customer_churn_v1`."""
