"""A label policy: read from YAML, checked as a whole, every message with file, line and rule.

Rules are evaluated in order and all of them are; the decision is the most severe among the enforced rules
that fired (`decisions` lists them from least to most severe), or the policy's default. A shadow rule is
recorded and decides nothing. A rule that reads a null value fires only if the rest of its expression is true
without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cel
import msgspec
import yaml

from common_service_libs.errors import PolicyError
from common_service_libs.label_engine.expressions import Expression, compile_expression, variable
from common_service_libs.label_engine.reason_codes import reason_codes

_LINE = "__line__"


class Inputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields that the rules may read; a bundle that lacks one of them is refused."""

    thresholds: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    request: tuple[str, ...] = ()
    status: tuple[str, ...] = ()

    def names(self) -> dict[str, tuple[str, ...]]:
        """Return the names under each root."""
        return {
            "thresholds": self.thresholds,
            "features": self.features,
            "request": self.request,
            "status": self.status,
        }


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decision and the reason for it."""

    decision: str
    reason_code: str


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A worked example: the fields that the rule reads, by dotted name, and whether it fires."""

    given: dict[str, Any]
    fires: bool


class _RuleDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    when: str
    decision: str
    reason_code: str
    owner: str
    description: str
    examples: tuple[Example, ...] = ()
    mode: Literal["enforce", "shadow"] = "enforce"


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: int
    model: str
    feature_service: str
    description: str
    decisions: tuple[str, ...]
    default: Outcome
    inputs: Inputs
    rules: tuple[Any, ...]
    without_features: Literal["score_defaults", "rules_only", "refuse"]
    rules_only: Outcome | None = None
    degraded_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One compiled rule."""

    id: str
    when: Expression
    decision: str
    reason_code: str
    owner: str
    description: str
    mode: str
    examples: tuple[Example, ...]

    @property
    def needs_model(self) -> bool:
        """Whether the rule reads the score or a feature."""
        return any(root in {"score", "features"} for root, _ in self.when.fields)


@dataclass(frozen=True)
class Policy:
    """A checked policy; `sha256` is the hash of its file.

    `without_features` says what happens while the online store is silent: score the declared defaults, decide
    by the rules that read neither score nor features, or refuse. `degraded_by` names the views whose
    staleness makes a decision a degraded one.
    """

    name: str
    version: int
    sha256: str
    model: str
    feature_service: str
    decisions: tuple[str, ...]
    default: Outcome
    inputs: Inputs
    rules: tuple[Rule, ...]
    without_features: str
    rules_only: Outcome | None
    degraded_by: frozenset[str]


def load_policy(path: Path) -> Policy:
    """Read, check and try the policy at `path`; raises PolicyError that says what is wrong on which line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path.name}: cannot be read: {error.strerror}") from None
    return parse_policy(content, path.name)


def find_policy(folder: Path) -> Path:
    """Return the one policy file in `folder`; raises PolicyError if there is none or more than one."""
    found = sorted(folder.glob("*.yaml"))
    if len(found) != 1:
        raise PolicyError(f"{len(found)} policies in {folder.name}, one is needed")
    return found[0]


def parse_policy(content: bytes, file: str) -> Policy:
    """Check and try a policy; `file` is named in every error."""
    document = _document(content, file)
    _require_outcomes(document, file)
    rules: list[Rule] = []
    for raw in document.rules:
        rule = _rule(raw, document, file)
        if any(earlier.id == rule.id for earlier in rules):
            raise PolicyError(f"{_place(file, raw)}: the id is used twice")
        rules.append(rule)
    return Policy(
        name=document.name,
        version=document.version,
        sha256=hashlib.sha256(content).hexdigest(),
        model=document.model,
        feature_service=document.feature_service,
        decisions=document.decisions,
        default=document.default,
        inputs=document.inputs,
        rules=tuple(rules),
        without_features=document.without_features,
        rules_only=document.rules_only,
        degraded_by=frozenset(document.degraded_by),
    )


def _document(content: bytes, file: str) -> _Document:
    try:
        raw = yaml.load(content, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise PolicyError(f"{file}:{line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PolicyError(f"{file}: not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise PolicyError(f"{file}: not a policy: a map is needed")
    rules = raw.get("rules")
    try:
        return msgspec.convert(_without_lines(raw) | {"rules": rules if rules is not None else []}, _Document)
    except msgspec.ValidationError as error:
        raise PolicyError(f"{file}: {error}") from None


def _rule(raw: Any, document: _Document, file: str) -> Rule:
    place = _place(file, raw)
    try:
        rule = msgspec.convert(_without_lines(raw), _RuleDocument)
        when = compile_expression(rule.when, document.inputs.names())
    except (msgspec.ValidationError, PolicyError) as error:
        raise PolicyError(f"{place}: {error}") from None
    _require_outcome(Outcome(rule.decision, rule.reason_code), document, place)
    if not any(example.fires for example in rule.examples):
        raise PolicyError(f"{place}: an example in which the rule fires is missing")
    for number, example in enumerate(rule.examples, start=1):
        _try(when, example, f"{place}: example {number}")
    return Rule(
        id=rule.id,
        when=when,
        decision=rule.decision,
        reason_code=rule.reason_code,
        owner=rule.owner,
        description=rule.description,
        mode=rule.mode,
        examples=rule.examples,
    )


def _try(when: Expression, example: Example, place: str) -> None:
    wanted = {f"{root}.{name}" if name else root for root, name in when.fields}
    if different := sorted(wanted.symmetric_difference(example.given)):
        raise PolicyError(f"{place}: it must give exactly the fields that the rule reads, not {different}")
    values = {
        variable(*(key.split(".", 1) if "." in key else (key, ""))): v for key, v in example.given.items()
    }
    nulls = any(value is None for value in values.values())
    try:
        fired = when.evaluate(cel.Context(values))
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        if not nulls:
            raise PolicyError(f"{place}: the expression fails: {str(error).splitlines()[0]}") from None
        fired = False
    if not isinstance(fired, bool):
        raise PolicyError(f"{place}: the expression gives {type(fired).__name__}, not true or false")
    if fired != example.fires:
        raise PolicyError(
            f"{place}: the rule {'fires' if fired else 'does not fire'}, the example says otherwise"
        )


def _require_outcomes(document: _Document, file: str) -> None:
    if len(set(document.decisions)) != len(document.decisions) or not document.decisions:
        raise PolicyError(f"{file}: decisions must be named, each once, from least to most severe")
    _require_outcome(document.default, document, f"{file}: default")
    if (document.rules_only is None) != (document.without_features != "rules_only"):
        raise PolicyError(f"{file}: rules_only goes with `without_features: rules_only`, and only with it")
    if document.rules_only is not None:
        _require_outcome(document.rules_only, document, f"{file}: rules_only")


def _require_outcome(outcome: Outcome, document: _Document, place: str) -> None:
    if outcome.decision not in document.decisions:
        raise PolicyError(f"{place}: unknown decision {outcome.decision}")
    if outcome.reason_code not in reason_codes():
        raise PolicyError(f"{place}: reason code {outcome.reason_code} is not in the table of reason codes")


def _place(file: str, raw: Any) -> str:
    if not isinstance(raw, Mapping):
        return f"{file}: a rule"
    return f"{file}:{raw.get(_LINE)}: rule {raw.get('id', '(no id)')}"


def _without_lines(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _without_lines(value) for key, value in raw.items() if key != _LINE}
    if isinstance(raw, list):
        return [_without_lines(value) for value in raw]
    return raw


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys; every map knows the line it begins on."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=True) | {_LINE: node.start_mark.line + 1}
