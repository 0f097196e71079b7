"""Parity: a simulated day served as if it were today, then every served vector recomputed offline."""
