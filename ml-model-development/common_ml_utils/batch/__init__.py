"""Batch prediction: a day in chunks that survive a kill, published at once, in this process or on Spark."""
