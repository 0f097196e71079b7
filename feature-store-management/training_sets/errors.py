"""What can be wrong with what a training set is made of.

TrainingSetError
├── EntityRowsError: the rows asked for: a column is absent, of another type, or null
├── NoRowsError: nothing was asked for
├── FeatureTableError: a feature table lacks a column, has another type, or two rows where there is one truth
└── MissingFeatureError: a feature that may not be missing is
"""

from __future__ import annotations


class TrainingSetError(Exception):
    """No training set can be made of this; the message says why."""


class EntityRowsError(TrainingSetError):
    """An entity row can't be asked for."""


class NoRowsError(TrainingSetError):
    """There is no entity row."""


class FeatureTableError(TrainingSetError):
    """A feature table is not what the contract says."""


class MissingFeatureError(TrainingSetError):
    """The contract says `fail` for a feature that is missing, stale or null."""
