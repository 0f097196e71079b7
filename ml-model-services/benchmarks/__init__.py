"""What this root measures, each with its targets in a file beside it."""
