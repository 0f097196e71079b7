"""The recommendation service: a viewer or a history in, a list of movies with its reasons out."""
