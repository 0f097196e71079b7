"""The whole loop on one machine: simulate, build, train, promote, serve, score, watch; then tell of it."""
