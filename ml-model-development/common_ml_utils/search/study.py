"""Studies in PostgreSQL: schema `optuna` of the database `decisions`, shared by workers, outliving them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import optuna
import psycopg
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from psycopg import sql
from sqlalchemy.exc import SQLAlchemyError

from common_ml_utils.errors import SearchError, first_line
from common_ml_utils.settings import DatabaseAddress

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = "optuna"
MISSED_HEARTBEATS = 3
RETRIES = 2
PROBLEM = "problem"
BEGUN = "begun"

optuna.logging.set_verbosity(optuna.logging.WARNING)


@contextmanager
def experimental() -> Iterator[None]:
    """Use what Optuna calls experimental for years, and warns of each time; what is relied on is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


class RepeatableSampler(BaseSampler):
    """TPE whose random numbers hang on the seed and the trial's number alone.

    A sampler with one seed for all trials would, in a worker that is started again or joins, repeat the very
    suggestions of the first ones.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._current: tuple[int, TPESampler] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See BaseSampler."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See BaseSampler."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See BaseSampler."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """See BaseSampler."""
        self._of(trial).before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """See BaseSampler."""
        self._of(trial).after_trial(study, trial, state, values)

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if self._current is None or self._current[0] != trial.number:
            mixed = hashlib.sha256(f"{self._seed}:{trial.number}".encode()).digest()[:4]
            with experimental():
                sampler = TPESampler(seed=int.from_bytes(mixed), multivariate=True, constant_liar=True)
            self._current = (trial.number, sampler)
        return self._current[1]


class StudyStore:
    """Where studies are kept; every failure to reach it is a SearchError, and no finished trial is lost."""

    def __init__(self, address: DatabaseAddress, heartbeat_seconds: int = 10, schema: str = SCHEMA) -> None:
        self._address = address
        self._heartbeat = heartbeat_seconds
        self._schema = schema

    @property
    def silence(self) -> timedelta:
        """How long a worker must be silent to count as dead."""
        return timedelta(seconds=self._heartbeat * MISSED_HEARTBEATS)

    def open(
        self, name: str, problem: Mapping[str, str], current: Mapping[str, Any] | None, seed: int, pruner: Any
    ) -> Study:
        """Return the study of a name, made if need be; `current` parameters are then its first trial.

        Raises SearchError when the study is of another problem: its trials can't be compared with new ones.
        """
        with self.reaching(), self._locked(name):
            study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                direction="maximize",
                sampler=RepeatableSampler(seed),
                pruner=pruner,
                load_if_exists=True,
            )
            known = study.user_attrs.get(PROBLEM)
            if known is None:
                if current is not None:
                    study.enqueue_trial(dict(current), user_attrs={"current": True}, skip_if_exists=True)
                study.set_user_attr(PROBLEM, dict(problem))
            elif known != dict(problem):
                other = sorted(key for key in {*known, *problem} if known.get(key) != problem.get(key))
                raise SearchError(
                    f"study {name} searched another problem (other {', '.join(other)}): its trials can't be "
                    "compared with new ones; give another name with --study"
                )
        return study

    def fail_dead_trials(self, study: Study) -> None:
        """Mark the trials of workers that fell silent as failed, and have their parameters tried again."""
        with experimental():
            optuna.storages.fail_stale_trials(study)
        # A worker killed before its first heartbeat leaves a trial that Optuna would believe in for ever.
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            started = trial.datetime_start  # local time without a zone
            silent = started is not None and datetime.now(UTC) - started.astimezone(UTC) > self.silence
            if silent and trial.user_attrs.get(BEGUN) != trial.number:
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def check_reachable(self) -> None:
        """Raise SearchError when the database does not answer, before long work begins."""
        with self.reaching(), psycopg.connect(**self._address.connection_arguments()):
            pass

    def delete(self, name: str) -> None:
        """Remove a study and its trials."""
        with self.reaching():
            optuna.delete_study(study_name=name, storage=self._storage)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keep other workers of the study out for the time of a block."""
        with self.reaching(), self._locked(name):
            yield

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn a failure to reach the database into a SearchError."""
        try:
            yield
        except (psycopg.Error, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else None
            text = first_line(cause if isinstance(cause, Exception) else error)
            place = f"{self._address.name} at {self._address.host}:{self._address.port}"
            raise SearchError(
                f"the database of studies, {place}, failed: {text}; finished trials are kept, start again to "
                "go on"
            ) from error

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold a lock of the study, which PostgreSQL drops when this process ends, however it ends."""
        with psycopg.connect(**self._address.connection_arguments(), autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(hashtextextended('optuna', 0))")
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(self._schema)))
            _ = self._storage  # makes or checks Optuna's tables
            connection.execute("SELECT pg_advisory_unlock(hashtextextended('optuna', 0))")
            connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 1))", [f"{self._schema}.{name}"])
            yield

    @cached_property
    def _storage(self) -> optuna.storages.RDBStorage:
        """Return Optuna's storage; user and password stand outside of the URL, which it may show."""
        address = self._address
        with experimental():
            return optuna.storages.RDBStorage(
                f"postgresql+psycopg://{address.host}:{address.port}/{address.name}",
                engine_kwargs={
                    "pool_pre_ping": True,
                    "connect_args": {
                        "user": address.user,
                        "password": address.password.get_secret_value(),
                        "options": f"-c search_path={self._schema}",
                        "connect_timeout": 10,
                    },
                },
                heartbeat_interval=self._heartbeat,
                grace_period=self._heartbeat * MISSED_HEARTBEATS,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(RETRIES),
            )


def pruner_of(name: str, steps: int) -> Any:
    """Return Optuna's pruner of a setting, for trials that report `steps` values."""
    makers: dict[str, Callable[[], Any]] = {
        "median": partial(optuna.pruners.MedianPruner, n_startup_trials=5, n_warmup_steps=1),
        "hyperband": partial(optuna.pruners.HyperbandPruner, min_resource=1, max_resource=steps),
        "none": optuna.pruners.NopPruner,
    }
    with experimental():
        return makers[name]()
