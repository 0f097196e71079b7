"""The recommender: which movies a viewer rates next, from ratings and the features of movies."""
