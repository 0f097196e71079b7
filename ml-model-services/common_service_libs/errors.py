"""Everything that can go wrong, as one tree; `error_handlers` maps the first branch to HTTP, once.

ServiceError
├── RequestError                      the client can put it right
│   ├── MalformedRequest              not JSON, or not readable as JSON
│   ├── InvalidRequest                JSON, but not what the schema says
│   ├── UnsupportedMediaType
│   ├── BodyTooLarge
│   ├── BodyTimeout                   the body did not arrive in time
│   ├── BodyTooDeep                   more levels of objects and arrays than this service reads
│   ├── DuplicateKey                  an object in the body names a key twice
│   ├── RequestIdReused               the request id stands for another body
│   ├── FeaturesMissing               the contract says `fail` for a feature that is not there
│   ├── DecisionNotFound
│   └── NotExplainable                the decision was made without a score
├── AccessError
│   ├── Unauthenticated               no key or token, or one that is not valid now
│   ├── Forbidden                     the key lacks the scope
│   └── RateLimited                   the client has used up its requests for now
├── Unavailable                       try again later
│   ├── Overloaded                    more requests than can be answered in time
│   ├── ModelUnavailable              no bundle is loaded
│   ├── FeaturesUnavailable           the online store is silent and the policy wants features
│   ├── BundleUnavailable             the bundle that made a decision cannot be had
│   ├── SpoolUnavailable              a decision could not be made durable
│   ├── DecisionStoreUnavailable      the decision database is silent
│   └── DecisionUnderWay              another worker is deciding the same request id
├── ArtifactError                     what another root published is not as agreed
│   ├── ContractError                 feature service contract
│   ├── ExpressionError               on-demand expression
│   ├── BundleError                   release bundle
│   └── PolicyError                   label policy
└── BackendError                      a server did not answer as it should
    ├── OnlineStoreError
    ├── DecisionTopicUnavailable
    └── RegistryError
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field: a JSON pointer and a sentence."""

    pointer: str
    detail: str


class ServiceError(Exception):
    """Root of every error that this project raises on purpose."""

    @property
    def detail(self) -> str:
        """Say what happened, for people; never holds a secret or an input value."""
        return str(self)


class RequestError(ServiceError):
    """The client can put it right."""


class MalformedRequest(RequestError):
    """The body is not JSON, or not readable as JSON."""


class InvalidRequest(RequestError):
    """The body is JSON, but not what the schema says."""

    def __init__(self, detail: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.errors = tuple(errors)


class UnsupportedMediaType(RequestError):
    """The body is not declared as JSON."""


class BodyTooLarge(RequestError):
    """The body is longer than this service reads."""


class BodyTimeout(RequestError):
    """The body did not arrive in time."""


class BodyTooDeep(RequestError):
    """The body has more levels of objects and arrays than this service reads."""


class DuplicateKey(RequestError):
    """An object in the body names a key twice: which value counts would be anybody's guess."""


class RequestIdReused(RequestError):
    """The request id already stands for another body."""


class FeaturesMissing(RequestError):
    """The contract says `fail` for features that the entity does not have."""

    def __init__(self, features: Sequence[str]) -> None:
        super().__init__(f"the entity is unknown or incomplete: {', '.join(features)} not available")
        self.features = tuple(features)


class DecisionNotFound(RequestError):
    """No decision is recorded under this id."""


class NotExplainable(RequestError):
    """The decision was made without a score."""


class AccessError(ServiceError):
    """The caller may not do this."""


class Unauthenticated(AccessError):
    """There is no key or token, or one that is not valid now; `challenge` says what would do."""

    def __init__(self, detail: str, challenge: str = 'ApiKey realm="decision service"') -> None:
        super().__init__(detail)
        self.challenge = challenge


class Forbidden(AccessError):
    """The key lacks the scope."""


class RateLimited(AccessError):
    """The client has used up its requests for now.

    `quota` requests may come at once, `window_seconds` is how long an empty bucket takes to fill.
    """

    def __init__(self, retry_after_seconds: float, quota: int, window_seconds: float) -> None:
        super().__init__(f"more than {quota} requests came faster than they are refilled")
        self.retry_after_seconds = retry_after_seconds
        self.quota = quota
        self.window_seconds = window_seconds


class Unavailable(ServiceError):
    """The same request may succeed later."""

    retry_after_seconds = 1


class Overloaded(Unavailable):
    """There are more requests than can be answered in time; this one was not looked at."""


class ModelUnavailable(Unavailable):
    """No release bundle is loaded."""

    retry_after_seconds = 5


class FeaturesUnavailable(Unavailable):
    """The online store is silent, and the policy decides nothing without features."""


class BundleUnavailable(Unavailable):
    """The release bundle that made a decision cannot be had."""

    retry_after_seconds = 5


class SpoolUnavailable(Unavailable):
    """A decision could not be made durable, so it is not given."""


class DecisionStoreUnavailable(Unavailable):
    """The decision database is silent."""


class DecisionUnderWay(Unavailable):
    """Another worker has taken the same request id, and its decision is not recorded yet."""


class ArtifactError(ServiceError):
    """What another root published is not as agreed."""


class ContractError(ArtifactError):
    """A feature service contract is not as documented."""


class ExpressionError(ArtifactError):
    """An on-demand expression is outside of the language."""


class BundleError(ArtifactError):
    """A release bundle is incomplete, altered, or does not reproduce its golden rows."""


class PolicyError(ArtifactError):
    """A label policy is wrong; every message names the file, the line and the rule."""


class BackendError(ServiceError):
    """A server did not answer as it should."""


class OnlineStoreError(BackendError):
    """The online store is silent or answered nonsense."""


class DecisionTopicUnavailable(BackendError):
    """The broker does not answer: it is not known whether it has the decisions."""


class RegistryError(BackendError):
    """The model registry is silent or answered nonsense."""
