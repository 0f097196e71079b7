"""Everything that can go wrong in training, evaluation and batch prediction, by kind.

ModelDevelopmentError
|-- DataError                  the data is not what the contract says
|   |-- SchemaMismatchError    missing, extra or wrongly typed columns, nulls where none may be
|   |-- EmptyWindowError       no rows, or no matured ones, in the interval asked for
|   |-- OneClassLabelsError    nothing to learn or to measure: all labels are equal
|   `-- ImmatureLabelsError    a label is younger than its maturity delay
|-- FeatureStoreError          the feature store does not answer, or lacks what was asked for
|-- BackendError               Spark or Ray can't be started, or can't fit what was asked for
|-- SearchError                a study or its search space is unusable, or the database does not answer
|-- BundleError                a release bundle is incomplete, altered or does not reproduce its golden rows
|-- RegistryError              the model registry does not answer, or lacks the version asked for
|-- LedgerError                the promotion ledger does not answer, or its hash chain is broken
`-- NotebookError              a notebook did not run to its end, or holds what an earlier run left
"""

from __future__ import annotations


class ModelDevelopmentError(Exception):
    """Base of this root's errors: commands print it as one line and exit with 1."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text: what happened, without the library's hints."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class DataError(ModelDevelopmentError):
    """The data is not what its contract says."""


class SchemaMismatchError(DataError):
    """Columns are missing, unexpected or of the wrong type, or hold nulls where none may be."""


class EmptyWindowError(DataError):
    """The interval asked for holds no rows, or none whose label is known."""


class OneClassLabelsError(DataError):
    """All labels are equal: nothing can be learned or measured."""


class ImmatureLabelsError(DataError):
    """A label was not known yet at the time the data claims to stand for."""


class FeatureStoreError(ModelDevelopmentError):
    """The feature store does not answer, or lacks what was asked for."""


class BackendError(ModelDevelopmentError):
    """Spark or Ray can't be started, or can't fit what was asked for."""


class SearchError(ModelDevelopmentError):
    """A study or its search space is unusable, or the database that keeps it does not answer."""


class BundleError(ModelDevelopmentError):
    """A release bundle is incomplete or altered, or does not reproduce its golden rows."""


class RegistryError(ModelDevelopmentError):
    """The model registry does not answer, or lacks the version asked for."""


class LedgerError(ModelDevelopmentError):
    """The promotion ledger does not answer, or its hash chain is broken."""


class NotebookError(ModelDevelopmentError):
    """A notebook did not run to its end, or holds what an earlier run left."""
