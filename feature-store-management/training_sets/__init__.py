"""Training sets: a feature service's vector for each entity row, from what was known strictly before it."""

import sys
from pathlib import Path

# Feast imports the files of its repository as top-level modules, so there is no package to import them from.
_FEAST_REPOSITORY = str(Path(__file__).resolve().parents[1] / "feast_repository")
if _FEAST_REPOSITORY not in sys.path:
    sys.path.append(_FEAST_REPOSITORY)
