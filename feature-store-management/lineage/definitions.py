"""What a feature service is made of: contract, SQL of its tables, seeds, and what a stream keeps for it.

Each part has a hash that changes when a value could change, and not when a comment, a line break or the case
of a name does: SQL is compared as sqlglot writes it, YAML as the values it holds.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import sqlglot
import yaml
from sqlglot import exp

from lineage.dbt_models import Model, Project

ROOT_DIR = Path(__file__).resolve().parents[1]

Parts = dict[str, str]  # "contract x", "model y", "seed z", "stream w" -> SHA-256


@cache
def normalised_sql(text: str) -> str:
    """Return a query without comments and format, names in lower case.

    >>> normalised_sql("SELECT a, -- the key\\n  B\\nfrom T") == normalised_sql("select a, b from t")
    True
    >>> normalised_sql("select a from t") == normalised_sql("select a from t where a > 0")
    False
    """
    tree = sqlglot.parse_one(text, dialect="postgres")
    for identifier in tree.find_all(exp.Identifier):
        if not identifier.quoted:
            identifier.set("this", identifier.name.lower())
    return tree.sql(dialect="postgres", comments=False)


@cache
def tables_read(text: str) -> frozenset[tuple[str, str]]:
    """Return (schema, table) of every relation a query reads; steps of the query itself have no schema."""
    tree = sqlglot.parse_one(text, dialect="postgres")
    return frozenset((table.db, table.name) for table in tree.find_all(exp.Table) if table.db)


class Definitions:
    """The definitions in a working copy of this root."""

    def __init__(self, root: Path = ROOT_DIR) -> None:
        self.root = root
        self.project = Project(root / "data_transformation_pipelines" / "dbt_project_feast")

    @cached_property
    def contracts(self) -> dict[str, dict[str, Any]]:
        """The contracts by the name of their service."""
        paths = sorted((self.root / "contracts" / "feature_services").glob("*.yaml"))
        return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}

    @cached_property
    def streams(self) -> dict[str, dict[str, Any]]:
        """The stream aggregations by name."""
        paths = sorted((self.root / "contracts" / "stream_aggregations").glob("*.yaml"))
        contents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths]
        return {content["name"]: content for content in contents}

    def models_behind(self, views: Iterable[str]) -> list[Model]:
        """Return the tables of the views and all that their rows are computed from, sorted by name.

        A table whose columns a model only uses to find out what to rebuild is not among them.
        """
        found: dict[str, Model] = {}
        pending = [f"fct_{view}" for view in views]
        while pending:
            model = self.project.model(pending.pop())
            if model.name not in found:
                found[model.name] = model
                read = {table for _, table in tables_read(model.sql)} if model.sql else set()
                pending.extend(read & set(self.project.models))
        return [found[name] for name in sorted(found)]

    def parts(self, service: str) -> Parts:
        """Return the hash of each part of a feature service."""
        contract = self.contracts[service]
        views = [view["name"] for view in contract["views"]]
        parts = {f"contract {service}": _hash_of(contract)}
        for model in self.models_behind(views):
            if model.materialized == "seed":
                with model.path.open(newline="", encoding="utf-8") as file:
                    parts[f"seed {model.name}"] = _hash_of(list(csv.reader(file)))
            else:
                parts[f"model {model.name}"] = _hash_of(normalised_sql(model.sql))
        for name, stream in self.streams.items():
            for view in stream["views"]:
                if view["view"] in views:
                    kept = {
                        key: value for key, value in stream.items() if key not in ("views", "version")
                    } | view
                    parts[f"stream {name} of {view['view']}"] = _hash_of(kept)
        return parts


def _hash_of(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
