"""Benchmarks of the feature platform, each beside a peer measured in the same run."""
