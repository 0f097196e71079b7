"""From a score to a decision: ordered rules in YAML, expressions in CEL, the same file for API and batch."""
