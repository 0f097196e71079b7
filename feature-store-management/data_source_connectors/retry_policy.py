"""When a source is asked again, and after what time: exponential backoff with full jitter."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from .errors import SourceUnavailableError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How often an action is tried, and how long is waited between.

    The wait before attempt n + 1 is uniform in [0, min(longest, first * 2^(n - 1))] seconds, on top of what
    the source asked for (Retry-After). A source that asks for more than the longest wait is not asked again.
    """

    attempts: int = 4
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 30.0

    def call(
        self, action: Callable[[], Result], *, what: str, sleep: Callable[[float], None] = time.sleep
    ) -> Result:
        """Return the action's result; only for actions that may safely happen twice.

        Only a SourceUnavailableError is retried, and the last one is raised as it is.
        """
        jitter = wait_random_exponential(multiplier=self.first_wait_seconds, max=self.longest_wait_seconds)

        def wait(state: RetryCallState) -> float:
            return jitter(state) + (_requested_wait(_error(state)) or 0.0)

        def report(state: RetryCallState) -> None:
            logger.warning(
                "%s: attempt %d of %d failed (%s); again in %.1f s",
                what,
                state.attempt_number,
                self.attempts,
                _error(state),
                state.next_action.sleep if state.next_action else 0.0,
            )

        retrying = Retrying(
            stop=stop_after_attempt(self.attempts),
            wait=wait,
            retry=retry_if_exception(self._is_worth_retrying),
            before_sleep=report,
            sleep=sleep,
            reraise=True,
        )
        return retrying(action)

    def _is_worth_retrying(self, error: BaseException) -> bool:
        return (
            isinstance(error, SourceUnavailableError)
            and error.retryable
            and (error.retry_after_seconds or 0.0) <= self.longest_wait_seconds
        )


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _requested_wait(error: BaseException | None) -> float | None:
    return error.retry_after_seconds if isinstance(error, SourceUnavailableError) else None
