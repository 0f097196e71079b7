"""The churn service: a subscriber in, the probability to leave and what to do about it out."""
