"""From which raw columns each column of the dbt models is computed, read from the models' SQL by sqlglot.

A column's parents are the columns its value is computed from; a count of rows has the rows themselves as
parent, written `*`. What only chooses or joins rows is no parent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlglot
from sqlglot import exp
from sqlglot.lineage import Node, lineage
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import build_scope
from sqlglot.schema import MappingSchema

from lineage.dbt_models import Model
from lineage.definitions import Definitions, tables_read

RAW_SCHEMA = Path("data_transformation_pipelines") / "python_scripts_feast" / "raw_schema.sql"
ROWS = "*"

Tables = dict[str, dict[str, dict[str, str]]]  # schema -> table -> column -> type


@dataclass(frozen=True, order=True)
class Column:
    """One column of a relation; `ROWS` stands for its rows as such."""

    schema: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}.{self.name}"


Parents = dict[Column, frozenset[Column]]


def raw_tables(root: Path) -> Tables:
    """Return the columns of the raw tables, as their definition has them."""
    statements = sqlglot.parse((root / RAW_SCHEMA).read_text(encoding="utf-8"), dialect="postgres")
    tables = {
        statement.this.this.name: {
            column.name: column.args["kind"].sql() for column in statement.this.find_all(exp.ColumnDef)
        }
        for statement in statements
        if isinstance(statement, exp.Create) and statement.kind == "TABLE"
    }
    return {"raw": tables}


def column_parents(definitions: Definitions) -> Parents:
    """Return the parents of every column of every model, views before what reads them."""
    tables = raw_tables(definitions.root)
    parents: Parents = {}
    for model in definitions.project.upstream(sorted(definitions.project.models)):
        if model.materialized == "seed":
            header = model.path.read_text(encoding="utf-8").splitlines()[0].split(",")
            tables.setdefault(model.schema, {})[model.name] = dict.fromkeys(header, "text")
            continue
        own = dict(_of_model(model, tables))
        parents |= own
        names = [column.name for column in own if column.name != ROWS]
        tables.setdefault(model.schema, {})[model.name] = dict.fromkeys(names, "text")
    return parents


def raw_ancestors(column: Column, parents: Mapping[Column, frozenset[Column]]) -> frozenset[Column]:
    """Return the columns of raw tables and seeds that a column goes back to."""
    return frozenset(ancestor for ancestor in ancestors(column, parents) if ancestor not in parents)


def ancestors(column: Column, parents: Mapping[Column, frozenset[Column]]) -> frozenset[Column]:
    """Return a column and all that it is computed from."""
    found: set[Column] = set()
    pending = [column]
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            pending.extend(parents.get(current, ()))
    return frozenset(found)


def _of_model(model: Model, tables: Tables) -> Iterator[tuple[Column, frozenset[Column]]]:
    tree = qualify(
        sqlglot.parse_one(model.sql, dialect="postgres"),
        dialect="postgres",
        schema=MappingSchema(dict(tables), dialect="postgres"),
        validate_qualify_columns=False,
        expand_alias_refs=False,
        quote_identifiers=False,
    )
    scope = build_scope(tree)
    rows = frozenset(Column(schema, table, ROWS) for schema, table in tables_read(model.sql))
    yield Column(model.schema, model.name, ROWS), rows
    assert isinstance(tree, exp.Query)
    for name in tree.named_selects:
        node = lineage(name, tree, tables, scope=scope, dialect="postgres", trim_selects=False)
        found = {parent for leaf in node.walk() if not leaf.downstream for parent in _parents_of(leaf, tree)}
        yield Column(model.schema, model.name, name), frozenset(found)


def _parents_of(leaf: Node, tree: exp.Expr) -> Iterator[Column]:
    """Return what the end of a column's lineage stands for: a relation's column, or counted rows."""
    if isinstance(leaf.expression, exp.Table):
        yield Column(leaf.expression.db, leaf.expression.name, leaf.name.rpartition(".")[2])
    elif any(isinstance(count.this, exp.Star) for count in leaf.expression.find_all(exp.Count)):
        for schema, table in _relations_of(leaf.source, tree, set()):
            yield Column(schema, table, ROWS)


def _relations_of(query: exp.Expr, tree: exp.Expr, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Return the relations behind a step of a query, through the steps it reads."""
    steps = {step.alias: step.this for step in tree.find_all(exp.CTE)}
    for table in query.find_all(exp.Table):
        if table.db:
            yield table.db, table.name
        elif table.name in steps and table.name not in seen:
            seen.add(table.name)
            yield from _relations_of(steps[table.name], tree, seen)
