"""Spark jobs: the daily windows for data beyond one database's size, and today's totals as a stream."""
