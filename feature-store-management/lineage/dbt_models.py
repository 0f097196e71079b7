"""The dbt models as SQL, rendered from their files: without a database, without dbt's start, in milliseconds.

A model is rendered as dbt compiles it in a full build (an integration test holds the two against each
other), or with other relations in place of what it reads: that is how a backfill limits a model to some
days.
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import yaml

PROJECT_DIR = Path(__file__).resolve().parents[1] / "data_transformation_pipelines" / "dbt_project_feast"
TARGET_SCHEMA = "features"  # the schema of profiles.yml.template


class ModelError(Exception):
    """A model can't be rendered or does not exist; the message names it."""


@dataclass(frozen=True)
class Model:
    """A model or seed: its relation, its SQL in a full build, what it reads (`refs`, `sources`), its config.

    A seed has no SQL. `sources` are tables of the schema `raw`.
    """

    name: str
    path: Path
    schema: str
    sql: str
    refs: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def relation(self) -> str:
        """The table or view, with its schema."""
        return f"{self.schema}.{self.name}"

    @property
    def materialized(self) -> str:
        """`view`, `table`, `incremental` or `seed`."""
        return str(self.config["materialized"])


@dataclass
class _Seen:
    """What a rendering meets: how it names what it reads, and what it read and configured."""

    relation: Callable[[str], str]
    refs: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    config: dict[str, Any] = field(default_factory=dict)


class _Return(Exception):  # noqa: N818 (dbt's `return` leaves a macro from wherever it stands)
    def __init__(self, value: Any) -> None:
        self.value = value


class Project:
    """The models and seeds of a dbt project; `prefix` goes before every schema's name."""

    def __init__(self, folder: Path = PROJECT_DIR, prefix: str = "") -> None:
        self.folder = folder
        self.prefix = prefix
        settings = yaml.safe_load((folder / "dbt_project.yml").read_text(encoding="utf-8"))
        self._variables: dict[str, Any] = settings.get("vars", {})
        self._layers: dict[str, dict[str, Any]] = settings["models"][settings["name"]]
        seed_schema = settings["seeds"][settings["name"]]["+schema"]
        self._environment = jinja2.Environment(
            extensions=["jinja2.ext.do"],
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            autoescape=False,  # noqa: S701 (SQL, not HTML)
        )
        texts = [
            re.sub(r"{%-?\s*test\b.*?endtest\s*-?%}", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
            for path in sorted(folder.glob("macros/*.sql"))
        ]
        self._macro_names = [name for text in texts for name in re.findall(r"{%-?\s*macro\s+(\w+)", text)]
        self._macros = [self._environment.from_string(text) for text in texts]
        self._paths = {path.stem: path for path in sorted(folder.glob("models/*/*.sql"))}
        self._templates = {
            name: self._environment.from_string(path.read_text(encoding="utf-8"))
            for name, path in self._paths.items()
        }
        self.models: dict[str, Model] = {
            path.stem: Model(path.stem, path, prefix + seed_schema, "", config={"materialized": "seed"})
            for path in sorted(folder.glob("seeds/*.csv"))
        }
        # What a model reads is only known once it is rendered, and its schema once its config is.
        self._schemas = {name: model.schema for name, model in self.models.items()}
        for name in self._paths:
            self._schemas[name] = prefix + self._config(name).get("schema", TARGET_SCHEMA)
        for name in self._paths:
            self.models[name] = self._load(name)

    def model(self, name: str) -> Model:
        """Return a model or seed; raises ModelError."""
        if name not in self.models:
            raise ModelError(f"no dbt model or seed is named {name}")
        return self.models[name]

    def upstream(self, names: Iterable[str]) -> list[Model]:
        """Return the models and all they are made from, each after what it reads."""
        graph: dict[str, frozenset[str]] = {}
        pending = list(names)
        while pending:
            name = pending.pop()
            if name not in graph:
                graph[name] = self.model(name).refs
                pending.extend(graph[name])
        ordered = graphlib.TopologicalSorter({name: sorted(graph[name]) for name in sorted(graph)})
        return [self.model(name) for name in ordered.static_order()]

    def render(
        self, name: str, relation: Callable[[Model], str], overrides: Mapping[str, Callable[..., Any]]
    ) -> str:
        """Return a model's SQL with `relation` for what it reads, and functions in place of macros."""
        return self._render(name, _Seen(lambda read: relation(self.model(read))), overrides)

    def arguments_of_hook(self, name: str, hook: str, macro: str) -> list[tuple[Any, ...]]:
        """Return the arguments of each call of a macro in a model's hook (`pre_hook` or `post_hook`)."""
        calls: list[tuple[Any, ...]] = []
        texts = self.model(name).config.get(hook, [])
        for text in [texts] if isinstance(texts, str) else texts:
            overrides = {macro: lambda *arguments: calls.append(arguments)}
            seen = _Seen(lambda read: self.model(read).relation)
            self._environment.from_string(text).render(self._context(name, seen, overrides))
        return calls

    def _config(self, name: str) -> dict[str, Any]:
        """Return the config of dbt_project.yml for the model's folder, and over it the model's own."""
        layer = self._layers.get(self._paths[name].parent.name, {})
        config: dict[str, Any] = {"materialized": "view"}
        config |= {key.removeprefix("+"): value for key, value in layer.items() if key.startswith("+")}
        seen = _Seen(str)
        self._render(name, seen, {})
        return config | seen.config

    def _load(self, name: str) -> Model:
        seen = _Seen(lambda read: f"{self._schema(read)}.{read}")
        sql = self._render(name, seen, {})
        refs, sources = frozenset(seen.refs), frozenset(seen.sources)
        return Model(name, self._paths[name], self._schemas[name], sql, refs, sources, self._config(name))

    def _schema(self, name: str) -> str:
        if name not in self._schemas:
            raise ModelError(f"no dbt model or seed is named {name}")
        return self._schemas[name]

    def _render(self, name: str, seen: _Seen, overrides: Mapping[str, Callable[..., Any]]) -> str:
        try:
            return self._templates[name].render(self._context(name, seen, overrides)).strip()
        except jinja2.TemplateError as error:
            raise ModelError(f"model {name} can't be rendered: {error}") from error

    def _context(self, name: str, seen: _Seen, overrides: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
        """Return what dbt gives a model in a full build; what is read and configured goes to `seen`."""

        def ref(read: str) -> str:
            seen.refs.add(read)
            return seen.relation(read)

        def source(schema: str, table: str) -> str:
            seen.sources.add(table)
            return f"{self.prefix}{schema}.{table}"

        def configure(**values: Any) -> str:
            seen.config.update(values)
            return ""

        def leave(value: Any) -> None:
            raise _Return(value)

        schema = self._schemas.get(name, "")
        context: dict[str, Any] = {
            "ref": ref,
            "source": source,
            "config": configure,
            "return": leave,
            "var": self._variables.__getitem__,
            "env_var": {"FEATURE_STORE_SCHEMA_PREFIX": self.prefix}.get,
            "is_incremental": lambda: False,
            "execute": False,
            "load_relation": lambda _: None,
            "this": _Relation(schema, name),
            "target": SimpleNamespace(schema=TARGET_SCHEMA),
        }
        macros: dict[str, Callable[..., Any]] = {}
        context |= {macro: partial(_call, macros, macro) for macro in self._macro_names}
        context |= overrides
        for template in self._macros:
            macros |= vars(template.make_module(context))
        return context


class _Relation(SimpleNamespace):
    """A relation as a macro sees it: its name alone (`identifier`), or as text with its schema."""

    def __init__(self, schema: str, identifier: str) -> None:
        super().__init__(schema=schema, identifier=identifier)

    def __str__(self) -> str:
        return f"{self.schema}.{self.identifier}"


def _call(macros: Mapping[str, Callable[..., Any]], name: str, *arguments: Any, **named: Any) -> Any:
    try:
        return macros[name](*arguments, **named)
    except _Return as left:
        return left.value
