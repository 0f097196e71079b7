"""Point-in-time features, labels and contracts from the feature store: Feast's SDK and its PostgreSQL.

All times are UTC. Entity rows are asked for as of their own time: a row of a feature table says itself from
when it is true and known, which is after the last event in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Protocol

import pandas as pd
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from tqdm import tqdm

from common_ml_utils.data_schemas.training_data_contract import PublishedContract, typed_feature
from common_ml_utils.errors import EmptyWindowError, FeatureStoreError, SchemaMismatchError, first_line
from common_ml_utils.settings import DatabaseAddress

PROJECT = "mlops_platform"
FEAST_SCHEMA = "feast"
PARALLEL_QUERIES = 2  # one is computed by PostgreSQL while the other's rows become a data frame


@dataclass(frozen=True)
class LabelPolicy:
    """How long a label takes to become known, and the version of that rule."""

    label_name: str
    delay_days: int
    policy_version: str


@dataclass(frozen=True)
class EntityQuery:
    """Which rows to fetch features for: a table with entity keys and event times, and its request values.

    `columns` are carried through unchanged. `request` maps a request value to an SQL expression over the
    table. With `labels_known_as_of`, only rows whose `label_known_at` is not later are taken.
    """

    table: tuple[str, str]
    columns: tuple[str, ...]
    order_by: str
    request: dict[str, str] = field(default_factory=dict)
    timestamp: str = "event_timestamp"
    labels_known_as_of: datetime | None = None

    def statement(self, start: datetime, end: datetime) -> str:
        """Return the SELECT for times in [start, end); its `event_timestamp` is what to ask as of."""
        parts: list[sql.Composable] = [sql.Identifier(name) for name in self.columns]
        parts.append(sql.SQL("{} AS event_timestamp").format(sql.Identifier(self.timestamp)))
        for name, expression in self.request.items():
            parts.append(sql.SQL("{e} AS {n}").format(e=sql.SQL(expression), n=sql.Identifier(name)))
        query = sql.SQL("SELECT {parts} FROM {table} WHERE {t} >= {start} AND {t} < {end}").format(
            parts=sql.SQL(", ").join(parts),
            table=sql.Identifier(*self.table),
            t=sql.Identifier(self.timestamp),
            start=_timestamptz(start),
            end=_timestamptz(end),
        )
        if self.labels_known_as_of is not None:
            known = sql.SQL(" AND label_known_at <= {}").format(_timestamptz(self.labels_known_as_of))
            query = sql.Composed([query, known])
        return query.as_string(None)


class PointInTimeStore(Protocol):
    """What the client needs of Feast."""

    def feature_service(self, name: str) -> Any:
        """Return a feature service with its `tags`; raises FeatureStoreError when it is not registered."""

    def historical_features(self, service: Any, statement: str) -> pd.DataFrame:
        """Return the statement's rows with the service's features as of each `event_timestamp`."""


class FeatureStoreClient:
    """Reads the feature store; a failure to reach it is a FeatureStoreError that says where it was sought."""

    def __init__(self, database: DatabaseAddress, store: PointInTimeStore | None = None) -> None:
        self._database = database
        self._store = store

    def contract(self, service_name: str) -> PublishedContract:
        """Return the contract published with a feature service."""
        with self._translated():
            tags = self._point_in_time().feature_service(service_name).tags
        if "contract" not in tags:
            raise FeatureStoreError(f"feature service {service_name} carries no tag 'contract'")
        return PublishedContract.parse(tags["contract"])

    def label_policy(self, label_name: str) -> LabelPolicy:
        """Return the maturity delay of a label, from the one table of delays."""
        rows = self.query(
            "SELECT delay_days, policy_version FROM labels.label_maturity WHERE label_name = %s", [label_name]
        )
        if len(rows) != 1:
            raise FeatureStoreError(f"labels.label_maturity has {len(rows)} rows for {label_name!r}, not one")
        return LabelPolicy(label_name, int(rows[0]["delay_days"]), str(rows[0]["policy_version"]))

    def dataset_id(self) -> str:
        """Return the identity of the loaded raw data."""
        rows = self.query("SELECT dataset_id FROM raw.dataset")
        if len(rows) != 1:
            raise FeatureStoreError(f"raw.dataset has {len(rows)} rows, not one: is the raw data loaded?")
        return str(rows[0]["dataset_id"])

    def loaded_days(self) -> tuple[date, date]:
        """Return the first and the last day with transactions."""
        rows = self.query("SELECT min(tx_date) AS first, max(tx_date) AS last FROM raw.transactions")
        if rows[0]["first"] is None:
            raise EmptyWindowError("raw.transactions is empty: load the transactions first")
        return rows[0]["first"], rows[0]["last"]

    def features_as_of(
        self,
        contract: PublishedContract,
        entities: EntityQuery,
        windows: Sequence[tuple[datetime, datetime]],
        description: str = "features",
    ) -> pd.DataFrame:
        """Return the entity rows of the windows [start, end) with their vectors, in the query's order.

        Each window is one Feast query: windows of a day keep its joins small and its memory bounded. Features
        have the contract's types and `on_missing`. Rows of the feature tables that became known only after
        the event are left out.
        """
        with self._translated():
            store = self._point_in_time()
            service = store.feature_service(contract.service.name)
        statements = [entities.statement(start, end) for start, end in windows]
        with (
            self._translated(),
            warnings.catch_warnings(),
            ThreadPoolExecutor(PARALLEL_QUERIES) as pool,
        ):
            # Feast asks for the query's columns through pandas, which would rather have SQLAlchemy.
            warnings.filterwarnings("ignore", message="pandas only supports SQLAlchemy", category=UserWarning)
            fetched = pool.map(lambda statement: store.historical_features(service, statement), statements)
            hidden = True if len(statements) == 1 else None  # None: shown on a terminal only
            progress = tqdm(fetched, desc=description, total=len(statements), unit="window", disable=hidden)
            parts = [part for part in progress if len(part)]
        if not parts:
            known = entities.labels_known_as_of
            rows = f"rows with labels known at {known:%Y-%m-%d}" if known else "rows"
            between = f"{windows[0][0]:%Y-%m-%d} and {windows[-1][1]:%Y-%m-%d}"
            raise EmptyWindowError(f"{'.'.join(entities.table)} has no {rows} between {between}")
        frame = pd.concat(parts, ignore_index=True)
        expected = dict.fromkeys(
            [*entities.columns, "event_timestamp", *entities.request, *contract.service.feature_names]
        )
        sources = {name for view in contract.service.views for name in view.field_names}
        absent = sorted(set(expected) - set(frame))
        extra = sorted(set(frame) - set(expected) - sources)
        if absent or extra:
            raise SchemaMismatchError(
                f"{contract.service.name} and its contract differ: missing {absent}, unexpected {extra}"
            )
        for feature in contract.service.features:
            frame[feature.name] = typed_feature(frame[feature.name], feature)
        for column in frame.select_dtypes("datetime"):
            frame[column] = frame[column].dt.tz_localize("UTC")  # Feast gives UTC without saying so
        frame["event_timestamp"] = pd.to_datetime(frame["event_timestamp"], utc=True)
        return frame[list(expected)].sort_values(entities.order_by, ignore_index=True)

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Run one read-only statement and return its rows as dictionaries."""
        with self._translated(), psycopg.connect(**self._database.connection_arguments()) as connection:
            connection.read_only = True
            with connection.cursor(row_factory=dict_row) as cursor:
                cursor.execute(statement, list(parameters))
                return cursor.fetchall()

    def _point_in_time(self) -> PointInTimeStore:
        """Return Feast's store, made at first use: its import takes seconds."""
        if self._store is None:
            self._store = FeastStore(self._database)
        return self._store

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (psycopg.Error, SQLAlchemyError) as error:
            address = f"{self._database.host}:{self._database.port}/{self._database.name}"
            raise FeatureStoreError(f"the feature store at {address} failed: {first_line(error)}") from error


class FeastStore:
    """Feast's SDK on its SQL registry and the PostgreSQL offline store."""

    def __init__(self, database: DatabaseAddress) -> None:
        from feast import FeatureStore
        from feast.infra.registry.sql import FeastRegistrySchemaError

        try:
            self._store = FeatureStore(config=_repo_config(database))
        except FeastRegistrySchemaError as error:
            raise FeatureStoreError("the feature registry is empty: apply the feature definitions") from error
        self._database = database

    def feature_service(self, name: str) -> Any:
        """Return a feature service of the registry."""
        from feast.errors import FeastError

        try:
            return self._store.get_feature_service(name)
        except FeastError as error:
            message = f"feature service {name} is not in the registry: apply the feature definitions"
            raise FeatureStoreError(message) from error

    def historical_features(self, service: Any, statement: str) -> pd.DataFrame:
        """Join the features, leaving out rows of feature tables that became known only later.

        The features that on-demand features are computed from come along.
        """
        from feast.errors import FeastError

        with psycopg.connect(**self._database.connection_arguments()) as connection:
            any_row = sql.SQL("SELECT 1 FROM ({}) AS entities LIMIT 1").format(sql.SQL(statement))
            if connection.execute(any_row).fetchone() is None:
                return pd.DataFrame()  # Feast can't join without rows
        try:
            job = self._store.get_historical_features(
                entity_df=statement, features=service, filter_by_created_timestamp=True
            )
            return job.to_df()
        except FeastError as error:
            raise FeatureStoreError(f"features could not be joined: {error}") from error


def day_windows(start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Cut [start, end) into windows of one day; both must be midnights of the same zone.

    >>> len(day_windows(datetime(2018, 4, 1), datetime(2018, 4, 8)))
    7
    """
    days = (end - start) // timedelta(days=1)
    return [(start + timedelta(days=i), start + timedelta(days=i + 1)) for i in range(days)]


def _repo_config(database: DatabaseAddress) -> Any:
    """Describe the store to Feast: SQL registry, PostgreSQL offline store, no online store."""
    from feast.repo_config import RepoConfig

    connection = {
        "host": database.host,
        "port": str(database.port),
        "dbname": database.name,
        "user": database.user,
        "password": database.password.get_secret_value(),
        "connect_timeout": "10",
        "options": f"-c search_path={FEAST_SCHEMA}",
    }
    return RepoConfig(
        project=PROJECT,
        provider="local",
        entity_key_serialization_version=3,
        registry={
            "registry_type": "sql",
            "path": "postgresql+psycopg://",
            "schema_mode": "verify",
            "sqlalchemy_config_kwargs": {"echo": False, "connect_args": connection},
        },
        offline_store={
            "type": "postgres",
            "host": database.host,
            "port": database.port,
            "database": database.name,
            "user": database.user,
            "password": database.password.get_secret_value(),
            "db_schema": FEAST_SCHEMA,
            "sslmode": "prefer",
        },
        online_store=None,
    )


def _timestamptz(time: datetime) -> sql.Composable:
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone")
    return sql.SQL("timestamptz {}").format(sql.Literal(time.isoformat()))
