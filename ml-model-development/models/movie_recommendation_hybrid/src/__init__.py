"""The recommender: which movies a viewer rates next, collaborative and content-based on ratings and features."""
