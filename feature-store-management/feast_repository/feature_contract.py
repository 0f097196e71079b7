"""Feature service contracts: the YAML files of contracts/feature_services, read strictly.

A contract names its entities, request values, views with their fields, on-demand expressions and the vector,
in order. The Feast definitions are built from it, so that no list of fields is written twice.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from on_demand_expressions import names, parse

CONTRACTS_DIR = Path(__file__).resolve().parents[1] / "contracts" / "feature_services"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
ValueType = Literal["int64", "float64", "string"]
RequestType = Literal["int64", "float64", "unix_timestamp"]


class ContractError(ValueError):
    """A contract file is not what it must be; the message names the file and the place in it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EntityContract(_Part):
    """One entity and the key it is joined by."""

    name: Name
    join_key: Name
    type: Literal["int64"]


class RequestField(_Part):
    """One value of the request; `unix_timestamp` is seconds since the epoch, a float."""

    name: Name
    type: RequestType


class ViewField(_Part):
    """One column of a feature view."""

    name: Name
    type: ValueType


class ViewContract(_Part):
    """One feature view; a value older than `ttl_seconds` is stale."""

    name: Name
    entity: Name
    ttl_seconds: int = Field(gt=0)
    fields: list[ViewField] = Field(min_length=1)


class OnDemandFeature(_Part):
    """One feature computed from request values and view fields by an expression."""

    name: Name
    type: Literal["float64"]
    expression: str

    @model_validator(mode="after")
    def _is_of_the_language(self) -> Self:
        parse(self.expression)
        return self


class OnDemandContract(_Part):
    """The on-demand view."""

    view: Name
    features: list[OnDemandFeature] = Field(min_length=1)


class VectorFeature(_Part):
    """One feature of the vector; `on_missing` says what a missing, stale or null value of a view becomes.

    `on_stale`, where it is given, says so for a stale value alone; `use_stale` lets the old value stand.
    """

    name: Name
    source: Name
    type: ValueType
    on_missing: Literal["default", "null", "fail"] | None = None
    on_stale: Literal["default", "null", "use_stale", "fail"] | None = None
    default: int | float | str | None = None

    @model_validator(mode="after")
    def _default_stands_where_it_is_used(self) -> Self:
        if ("default" in (self.on_missing, self.on_stale)) != (self.default is not None):
            raise ValueError(
                f"{self.name}: a default stands where on_missing or on_stale is default, and only there"
            )
        wanted = {"int64": int, "float64": float, "string": str}[self.type]
        if self.default is not None and type(self.default) is not wanted:
            raise ValueError(f"{self.name}: the default {self.default!r} is no {self.type}")
        return self


class FeatureContract(_Part):
    """One feature service: what a model is trained on and what a service serves."""

    name: Name
    version: int = Field(ge=1)
    entities: list[EntityContract] = Field(min_length=1)
    request: list[RequestField]
    views: list[ViewContract] = Field(min_length=1)
    on_demand: OnDemandContract | None
    features: list[VectorFeature] = Field(min_length=1)

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if not self.name.endswith(f"_v{self.version}"):
            raise ValueError(f"the name {self.name} does not end in _v{self.version}")
        request_names = [field.name for field in self.request]
        view_fields = [field.name for view in self.views for field in view.fields]
        on_demand = self.on_demand.features if self.on_demand else []
        views = [view.name for view in self.views] + ([self.on_demand.view] if self.on_demand else [])
        _refuse_repeats("an entity", (entity.name for entity in self.entities))
        _refuse_repeats("a join key", (entity.join_key for entity in self.entities))
        _refuse_repeats("a view", views)
        _refuse_repeats("an input", request_names + view_fields)
        _refuse_repeats("an on-demand feature", (feature.name for feature in on_demand))
        _refuse_repeats("a feature", (feature.name for feature in self.features))
        self._check_views(view_fields)
        self._check_expressions({*request_names, *view_fields}, {*view_fields})
        self._check_vector()
        return self

    def _check_views(self, view_fields: list[str]) -> None:
        entities = {entity.name for entity in self.entities}
        for view in self.views:
            if view.entity not in entities:
                raise ValueError(f"view {view.name}: no entity {view.entity}")
        used = {feature.name for feature in self.features}
        for on_demand in self.on_demand.features if self.on_demand else []:
            used.update(names(on_demand.expression))
        if unused := sorted({*view_fields, *(field.name for field in self.request)} - used):
            raise ValueError(f"nothing reads {', '.join(unused)}")

    def _check_expressions(self, inputs: set[str], view_fields: set[str]) -> None:
        strings = {field.name for view in self.views for field in view.fields if field.type == "string"}
        for feature in self.on_demand.features if self.on_demand else []:
            read = set(names(feature.expression))
            if unknown := sorted(read - inputs):
                raise ValueError(
                    f"{feature.name}: the expression reads {', '.join(unknown)}, which nothing gives"
                )
            if text := sorted(read & strings):
                raise ValueError(
                    f"{feature.name}: the expression reads {', '.join(text)}, which is no number"
                )
            if feature.name in view_fields:
                raise ValueError(f"{feature.name} is a view's field and an on-demand feature")

    def _check_vector(self) -> None:
        types: dict[tuple[str, str], str] = {
            (view.name, field.name): field.type for view in self.views for field in view.fields
        }
        computed = self.on_demand.view if self.on_demand else None
        for feature in self.on_demand.features if self.on_demand else []:
            types[self.on_demand.view, feature.name] = feature.type  # type: ignore[union-attr]
        for entry in self.features:
            if types.get((entry.source, entry.name)) != entry.type:
                raise ValueError(f"{entry.source} has no {entry.name} of type {entry.type}")
            if (entry.source == computed) != (entry.on_missing is None):
                raise ValueError(f"{entry.name}: on_missing belongs to a view's field, and to each of them")
            if entry.source == computed and entry.on_stale is not None:
                raise ValueError(f"{entry.name} is computed: it has no age for on_stale")
        if computed:
            taken = {entry.name for entry in self.features if entry.source == computed}
            unused = [item.name for item in self.on_demand.features if item.name not in taken]  # type: ignore[union-attr]
            if unused:
                raise ValueError(f"on-demand features outside the vector: {', '.join(unused)}")

    def view(self, name: str) -> ViewContract:
        """Return the view of that name; raises KeyError where there is none."""
        for view in self.views:
            if view.name == name:
                return view
        raise KeyError(name)

    def canonical_json(self) -> str:
        """Return the contract as JSON with sorted keys and no spaces: equal contracts give equal bytes.

        Keys that only some features have (`on_missing`, `default`) stand where they stand in the YAML.
        """
        content = self.model_dump(mode="json", exclude_unset=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _refuse_repeats(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what} stands twice: {value}")
        seen.add(value)


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, which the standard loader lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Return the mapping; raises a YAML error at a repeated key."""
        keys: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


def parse_contract(text: str, source: str) -> FeatureContract:
    """Return the contract that a YAML text holds; raises ContractError, naming `source` and the place."""
    try:
        content = yaml.load(text, _StrictLoader)  # noqa: S506 (a SafeLoader)
        return FeatureContract.model_validate(content)
    except yaml.YAMLError as error:
        raise ContractError(f"{source}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the contract"
        raise ContractError(f"{source}: {place}: {first['msg']}") from error


@cache
def load_contract(name: str) -> FeatureContract:
    """Return the contract of that name from contracts/feature_services; raises ContractError."""
    path = CONTRACTS_DIR / f"{name}.yaml"
    if not path.is_file():
        raise ContractError(f"{path}: no such contract")
    contract = parse_contract(path.read_text(encoding="utf-8"), path.name)
    if contract.name != name:
        raise ContractError(f"{path.name}: it is named {contract.name}")
    return contract
