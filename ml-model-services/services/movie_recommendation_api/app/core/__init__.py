"""Settings and model of the service."""
