"""Jobs that watch the models: what they read, compute and report."""
