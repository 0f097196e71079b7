"""The search space as data: `src/search_space.yaml` of a project, checked against its hyperparameters."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from common_ml_utils.errors import SearchError

# A seed that wins is luck, and threads change nothing but time.
NOT_SEARCHED = ("seed", "n_jobs")
Number = StrictInt | StrictFloat


class Range(BaseModel):
    """Values from `low` to `high`, both included, in steps of `step` or evenly on a logarithmic scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: Number
    high: Number
    step: Number | None = None
    log: StrictBool = False


class Choices(BaseModel):
    """One of a few values without order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: tuple[StrictStr | StrictBool | Number, ...]


class SearchSpace:
    """The parameters to search, each with a range or choices that the hyperparameter model accepts."""

    def __init__(self, base: BaseModel, parameters: Mapping[str, Range | Choices]) -> None:
        self.base = base
        self.parameters = dict(parameters)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Ask an Optuna trial for a value of each parameter."""
        values: dict[str, Any] = {}
        for name, wanted in self.parameters.items():
            if isinstance(wanted, Choices):
                values[name] = trial.suggest_categorical(name, list(wanted.choices))
            elif kind_of(self.base, name) is int:
                step = 1 if wanted.step is None else wanted.step
                values[name] = trial.suggest_int(name, wanted.low, wanted.high, step=step, log=wanted.log)
            else:
                values[name] = trial.suggest_float(
                    name, wanted.low, wanted.high, step=wanted.step, log=wanted.log
                )
        return values

    def hyperparameters(self, values: Mapping[str, Any]) -> BaseModel:
        """Return the project's hyperparameters with these values."""
        return type(self.base).model_validate({**self.base.model_dump(), **values})

    def current(self) -> dict[str, Any] | None:
        """Return the values that are set now, or None when one of them lies outside of the space."""
        values = {name: getattr(self.base, name) for name in self.parameters}
        for name, wanted in self.parameters.items():
            value = values[name]
            inside = (
                value in wanted.choices
                if isinstance(wanted, Choices)
                else value is not None and wanted.low <= value <= wanted.high and _on_a_step(value, wanted)
            )
            if not inside:
                return None
        return values

    def identity(self) -> str:
        """Return a short hash of the space and of the parameters it leaves as they are."""
        kept = {k: v for k, v in self.base.model_dump().items() if k not in (*self.parameters, "n_jobs")}
        parts = {"space": {k: v.model_dump() for k, v in self.parameters.items()}, "kept": kept}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def kind_of(base: BaseModel, name: str) -> Any:
    """Return the type of a parameter; one that may also be unset counts as the type it has when set."""
    annotation = type(base).model_fields[name].annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if isinstance(annotation, UnionType) and len(kinds) == 1 else annotation


def load_space(path: Path, base: BaseModel) -> SearchSpace:
    """Read and check a search space; raises SearchError that names the parameter and what is wrong."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SearchError(f"{path.name} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not document:
        raise SearchError(f"{path.name} names no parameter: expected `max_depth: {{low: 2, high: 8}}`")
    return SearchSpace(
        base, {str(name): _entry(path.name, str(name), document[name], base) for name in document}
    )


def _entry(file: str, name: str, content: Any, base: BaseModel) -> Range | Choices:
    fields = type(base).model_fields
    if name in NOT_SEARCHED:
        raise SearchError(f"{file}: {name} is not searched: a better value of it would be luck")
    if name not in fields:
        raise SearchError(f"{file}: {name} is not a parameter of {type(base).__name__}: {sorted(fields)}")
    kind = Choices if isinstance(content, dict) and "choices" in content else Range
    try:
        entry = kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join([name, *(str(part) for part in problem["loc"])])
        raise SearchError(f"{file}: {place}: {problem['msg']}") from error
    _check(file, name, entry, base)
    return entry


def _check(file: str, name: str, entry: Range | Choices, base: BaseModel) -> None:
    numeric = kind_of(base, name) in (int, float)
    if isinstance(entry, Choices):
        if not entry.choices:
            raise SearchError(f"{file}: {name}: choices are empty")
        edges: tuple[Any, ...] = entry.choices
    else:
        if not numeric:
            raise SearchError(f"{file}: {name} is not a number: give `choices`, not low and high")
        if entry.low >= entry.high:
            raise SearchError(f"{file}: {name}: low {entry.low} is not below high {entry.high}")
        if entry.log and (entry.low <= 0 or entry.step is not None):
            raise SearchError(f"{file}: {name}: log needs low > 0 and no step")
        if entry.step is not None and entry.step <= 0:
            raise SearchError(f"{file}: {name}: step {entry.step} is not above 0")
        edges = (entry.low, entry.high, *(() if entry.step is None else (entry.low + entry.step,)))
    for edge in edges:
        try:
            type(base).model_validate({**base.model_dump(), name: edge})
        except ValidationError as error:
            raise SearchError(f"{file}: {name}: {edge!r}: {error.errors()[0]['msg']}") from error


def _on_a_step(value: float, wanted: Range) -> bool:
    if wanted.step is None:
        return True
    steps = (value - wanted.low) / wanted.step
    return math.isclose(steps, round(steps), abs_tol=1e-9)
