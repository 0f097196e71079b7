"""Totals into the offline tables, and how far each partition's log is processed: one transaction for both.

`<prefix>stream.partition_position` is the memory of the processor. It says, for each partition of a consumer
group, the next offset and the first offset of every day that is kept, so that the state can be rebuilt from
the log. Neither broker can be asked for the latter, and the embedded one does not keep a commit's metadata.
`<prefix>stream.forwarded_position` says how far the group's own messages reach in the topics it forwards to:
a message that the log has taken may be seen there only later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from data_source_connectors.binary_copy import Column, PostgresType
from data_source_connectors.database_connector import DatabaseSettings, connect, copy_columns

from .aggregation_contract import StreamDefinition, StreamedView
from .running_totals import TotalsRow, field_columns

TABLE_KEY = ("event_timestamp", "created_timestamp")
SQL_TYPES: dict[str, PostgresType] = {"count": "bigint", "day": "bigint", "sum": "double precision"}


class MissingTableError(Exception):
    """An offline table is not there, or has no unique key to write by; dbt makes it."""


class LostPartitionError(Exception):
    """Another processor has gone on with a partition in the meantime; nothing of this one's was written."""


@dataclass(frozen=True)
class Position:
    """How far a partition is processed: the next offset, and the first offset of each day that is kept."""

    next_offset: int
    first_offsets: Mapping[int, int]

    @property
    def rebuild_from(self) -> int:
        """The offset to read from so that the state at `next_offset` comes out."""
        return min([self.next_offset, *self.first_offsets.values()])


@dataclass(frozen=True)
class Advance:
    """A step of one partition: from the position this processor knows (None: none yet) to the next."""

    topic: str
    partition: int
    known: int | None
    position: Position


class OfflineRows:
    """A connection that writes rows and positions; raises psycopg.Error and DatabaseUnavailableError."""

    def __init__(
        self, settings: DatabaseSettings, schema_prefix: str, group: str, definition: StreamDefinition
    ) -> None:
        self._stack = ExitStack()
        self._schema, self._features = schema_prefix + "stream", schema_prefix + "features"
        self._group = group
        self._views = {view.view: view for view in definition.views}
        self._connection = self._stack.enter_context(connect(settings, application_name="transaction-stream"))
        try:
            self._prepare()
        except BaseException:
            self._stack.close()
            raise

    def _prepare(self) -> None:
        connection, schema = self._connection, sql.Identifier(self._schema)
        with connection.transaction():
            # Two processors that start at once would both find no schema.
            connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (self._schema,))
            connection.execute(sql.SQL("create schema if not exists {}").format(schema))
            connection.execute(
                sql.SQL(
                    "create table if not exists {}.partition_position ("
                    "consumer_group text, topic text, partition integer, next_offset bigint not null,"
                    " first_offsets jsonb not null, updated_at timestamptz not null default now(),"
                    " primary key (consumer_group, topic, partition))"
                ).format(schema)
            )
            connection.execute(
                sql.SQL(
                    "create table if not exists {}.forwarded_position ("
                    "consumer_group text, topic text, partition integer, end_offset bigint not null,"
                    " primary key (consumer_group, topic, partition))"
                ).format(schema)
            )
        for view in self._views.values():
            try:
                connection.execute(self._merge(view, nothing=True))
                connection.execute(
                    sql.SQL("create temporary table {} (like {}) on commit delete rows").format(
                        sql.Identifier(f"incoming_{view.view}"), self._table(view)
                    )
                )
            except (
                psycopg.errors.UndefinedTable,
                psycopg.errors.UndefinedColumn,
                psycopg.errors.InvalidColumnReference,
            ) as error:
                raise MissingTableError(
                    f"{self._features}.fct_{view.view} can't be written by {view.entity_key}, "
                    f"{' and '.join(TABLE_KEY)}: {str(error).splitlines()[0]}; "
                    "run scripts/run_dbt_for_feast.sh"
                ) from error

    def _table(self, view: StreamedView) -> sql.Identifier:
        return sql.Identifier(self._features, f"fct_{view.view}")

    def _merge(self, view: StreamedView, *, nothing: bool = False) -> sql.Composed:
        """Return the statement that brings the incoming rows in; with `nothing`, one that only tries."""
        fields = [field.name for field in view.fields]
        columns = [view.entity_key, *TABLE_KEY, *fields]
        source = (
            sql.SQL("select {} from {} where false").format(
                sql.SQL(", ").join(map(sql.Identifier, columns)), self._table(view)
            )
            if nothing
            else sql.SQL("select {} from {}").format(
                sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(f"incoming_{view.view}")
            )
        )
        return sql.SQL("insert into {} ({}) {} on conflict ({}) do update set {}").format(
            self._table(view),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            source,
            sql.SQL(", ").join(map(sql.Identifier, [view.entity_key, *TABLE_KEY])),
            sql.SQL(", ").join(
                sql.SQL("{0} = excluded.{0}").format(sql.Identifier(field)) for field in fields
            ),
        )

    def position(self, topic: str, partition: int) -> Position | None:
        """Return how far a partition has been processed, None where it never was."""
        row = self._connection.execute(
            sql.SQL(
                "select next_offset, first_offsets from {}.partition_position"
                " where (consumer_group, topic, partition) = (%s, %s, %s)"
            ).format(sql.Identifier(self._schema)),
            (self._group, topic, partition),
        ).fetchone()
        return None if row is None else Position(row[0], {int(day): at for day, at in row[1].items()})

    def forwarded(self) -> dict[tuple[str, int], int]:
        """Return, by topic and partition, the offset after the last message that the group forwarded."""
        rows = self._connection.execute(
            sql.SQL(
                "select topic, partition, end_offset from {}.forwarded_position where consumer_group = %s"
            ).format(sql.Identifier(self._schema)),
            (self._group,),
        )
        return {(topic, partition): end for topic, partition, end in rows}

    def advance(
        self,
        rows: Mapping[str, Sequence[TotalsRow]],
        steps: Sequence[Advance],
        forwarded: Mapping[tuple[str, int], int],
    ) -> None:
        """Write a view's rows (unique by key), steps and ends of what was forwarded together, or nothing.

        A row of the same key replaces the one that stands: it was made later in the same moment.
        """
        with self._connection.transaction():
            for step in sorted(steps, key=lambda step: (step.topic, step.partition)):
                self._take(step)
            for (topic, partition), end in sorted(forwarded.items()):
                self._connection.execute(
                    sql.SQL(
                        "insert into {} as known (consumer_group, topic, partition, end_offset)"
                        " values (%s, %s, %s, %s) on conflict (consumer_group, topic, partition)"
                        " do update set end_offset = greatest(known.end_offset, excluded.end_offset)"
                    ).format(sql.Identifier(self._schema, "forwarded_position")),
                    (self._group, topic, partition, end),
                )
            for name, some in rows.items():
                if some:
                    view = self._views[name]
                    copy_columns(self._connection, f"incoming_{name}", _columns(view, some))
                    self._connection.execute(self._merge(view))

    def _take(self, step: Advance) -> None:
        values = {
            "group": self._group,
            "topic": step.topic,
            "partition": step.partition,
            "known": step.known,
            "next": step.position.next_offset,
            "first": Jsonb({str(day): at for day, at in step.position.first_offsets.items()}),
        }
        table = sql.Identifier(self._schema, "partition_position")
        if step.known is None:
            statement = sql.SQL(
                "insert into {} (consumer_group, topic, partition, next_offset, first_offsets)"
                " values (%(group)s, %(topic)s, %(partition)s, %(next)s, %(first)s) on conflict do nothing"
            )
        else:
            statement = sql.SQL(
                "update {} set next_offset = %(next)s, first_offsets = %(first)s, updated_at = now()"
                " where consumer_group = %(group)s and topic = %(topic)s and partition = %(partition)s"
                " and next_offset = %(known)s"
            )
        if self._connection.execute(statement.format(table), values).rowcount != 1:
            raise LostPartitionError(
                f"{step.topic}[{step.partition}] no longer stands at {step.known}: another processor has it"
            )

    def close(self) -> None:
        """Close the connection."""
        self._stack.close()


def _columns(view: StreamedView, rows: Sequence[TotalsRow]) -> list[Column]:
    values = field_columns(view, rows)
    moments = {
        "event_timestamp": [row.event_us for row in rows],
        "created_timestamp": [row.created_us for row in rows],
    }
    return [
        Column(view.entity_key, "bigint", np.array([row.entity for row in rows], dtype=np.int64)),
        *(
            Column(name, "timestamptz", np.array(each, dtype=np.int64).view("datetime64[us]"))
            for name, each in moments.items()
        ),
        *(Column(field.name, SQL_TYPES[field.aggregate], values[field.name]) for field in view.fields),
    ]
