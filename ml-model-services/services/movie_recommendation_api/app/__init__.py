"""The recommendation service: a viewer or a history in, a list of movies with its reasons out."""

import os

# One viewer's scores are a quarter of a millisecond of arithmetic: threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
