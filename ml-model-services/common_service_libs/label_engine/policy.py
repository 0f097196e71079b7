"""A label policy: read from YAML, checked as a whole, every problem with file and line.

All rules are evaluated, in order, and all that fire are recorded. The decision is the most severe among the
enforced rules that fired (`decisions` lists them from least to most severe), or the policy's default; a
`final` rule that fires decides alone, the first of them where several fire. A shadow rule is recorded and
decides nothing. A rule that reads a null value fires only if the rest of its expression is true without it.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cel
import msgspec

from common_service_libs.errors import PolicyError
from common_service_libs.feature_status import FeatureStatus
from common_service_libs.label_engine.costs import Costs
from common_service_libs.label_engine.documents import (
    Lined,
    Problem,
    Unreadable,
    WrongFile,
    convert,
    line_of,
    read_yaml,
)
from common_service_libs.label_engine.expressions import (
    BARE_FIELDS,
    CEL_ERRORS,
    Expression,
    compile_expression,
    split,
    variable,
)
from common_service_libs.label_engine.reachability import Domains, implies, never
from common_service_libs.label_engine.reason_codes import reason_codes
from common_service_libs.label_engine.types import Type, said
from common_service_libs.label_engine.velocity import VelocityLimit

CHEAPEST = "cheapest"
InputType = Literal["double", "int", "string", "bool"]
Declared = tuple[str, ...] | dict[str, InputType]


class InputsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields that the rules may read.

    `features` and `request` are names, which are then numbers, or a map of names to types.
    """

    thresholds: tuple[str, ...] = ()
    features: Declared = ()
    request: Declared = ()
    status: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """The fields that the rules may read; a bundle without one of them, or of another type, is refused."""

    thresholds: tuple[str, ...] = ()
    features: Mapping[str, Type] = field(default_factory=dict)
    request: Mapping[str, Type] = field(default_factory=dict)
    status: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    velocity: tuple[str, ...] = ()

    def types(self) -> dict[str, Type]:
        """Return the type of every field by path, without those that stand alone (`score`)."""
        plain: tuple[tuple[str, tuple[str, ...], Type], ...] = (
            ("thresholds", self.thresholds, "double"),
            ("status", self.status, "string"),
            ("lists", self.lists, "bool"),
            ("velocity", self.velocity, "double"),
        )
        found: dict[str, Type] = {f"{root}.{name}": kind for root, names, kind in plain for name in names}
        found |= {f"features.{name}": kind for name, kind in self.features.items()}
        found |= {f"request.{name}": kind for name, kind in self.request.items()}
        return found


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decision and the reason for it."""

    decision: str
    reason_code: str


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A worked example: the fields that the rule reads, by dotted name, and whether it fires."""

    given: dict[str, Any]
    fires: bool


class CostExample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A worked example of the costs: the score and the fields they read, and the cheapest decision."""

    given: dict[str, Any]
    cheapest: str


class RuleDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule as it is written."""

    id: str
    when: str
    decision: str
    reason_code: str
    owner: str
    description: str
    examples: tuple[Example, ...] = ()
    mode: Literal["enforce", "shadow"] = "enforce"
    final: bool = False


class CostsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each decision costs if the case is positive and if it is negative: numbers or expressions."""

    positive: dict[str, float | str]
    negative: dict[str, float | str]
    owner: str
    description: str
    examples: tuple[CostExample, ...] = ()


class PolicyDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy as it is written; rules are read one by one."""

    name: str
    version: int
    model: str
    feature_service: str
    description: str
    decisions: tuple[str, ...]
    default: Outcome
    inputs: InputsDocument
    rules: tuple[Any, ...]
    without_features: Literal["score_defaults", "rules_only", "refuse"]
    rules_only: Outcome | None = None
    degraded_by: tuple[str, ...] = ()
    velocity: dict[str, VelocityLimit] = {}
    costs: CostsDocument | None = None


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
    final: bool
    examples: tuple[Example, ...]

    @property
    def needs_model(self) -> bool:
        """Whether the rule reads the score, a feature, or what follows from the score."""
        return any(root in {"score", "features", CHEAPEST} for root, _ in self.when.fields)


@dataclass(frozen=True)
class Policy:
    """A checked policy; `content` is its file and `sha256` the hash of it.

    `without_features` says what happens while the online store is silent: score the declared defaults, decide
    by the rules that read neither score nor features, or refuse. `degraded_by` names the views whose
    staleness makes a decision a degraded one. `velocity` are the limits by name, `costs` what decisions cost
    where the policy says so.
    """

    name: str
    version: int
    sha256: str
    content: bytes
    model: str
    feature_service: str
    decisions: tuple[str, ...]
    default: Outcome
    inputs: Inputs
    rules: tuple[Rule, ...]
    without_features: str
    rules_only: Outcome | None
    degraded_by: frozenset[str]
    velocity: Mapping[str, VelocityLimit]
    costs: Costs | None

    @functools.cached_property
    def reads_more(self) -> bool:
        """Whether the rules read lists or velocities."""
        return bool(self.inputs.lists or self.velocity)


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
    """Check and try a policy; raises WrongFile, which names `file` and every problem."""
    reading = _Reading(content)
    policy = reading.policy()
    if policy is None or reading.problems:
        raise WrongFile(file, reading.problems)
    return policy


class _Reading:
    """One reading of a policy: collects every problem instead of stopping at the first."""

    def __init__(self, content: bytes) -> None:
        self.problems: list[Problem] = []
        self._content = content
        self._raw: Any = None
        self._types: dict[str, Type] = {}

    def policy(self) -> Policy | None:
        document = self._document()
        if document is None:
            return None
        inputs = self._inputs(document)
        self._types = dict(BARE_FIELDS) | inputs.types()
        costs = self._costs(document, inputs)
        if costs is not None:
            self._types[CHEAPEST] = "string"
        self._require_outcomes(document)
        rules = self._rules(document)
        self._require_reach(rules, document)
        return Policy(
            name=document.name,
            version=document.version,
            sha256=hashlib.sha256(self._content).hexdigest(),
            content=self._content,
            model=document.model,
            feature_service=document.feature_service,
            decisions=document.decisions,
            default=document.default,
            inputs=inputs,
            rules=tuple(rule for rule, _ in rules),
            without_features=document.without_features,
            rules_only=document.rules_only,
            degraded_by=frozenset(document.degraded_by),
            velocity=document.velocity,
            costs=costs,
        )

    def _note(self, line: int, message: str, place: str = "") -> None:
        self.problems.append(Problem(line, place, message))

    # --- the head of the document ---------------------------------------------------------------------------

    def _document(self) -> PolicyDocument | None:
        try:
            self._raw = raw = read_yaml(self._content)
            if not isinstance(raw, Lined):
                raise Unreadable(Problem(0, "", "not a policy: a map is needed"))
            return convert(Lined(raw | {"rules": raw.get("rules") or []}, raw.lines), PolicyDocument)
        except Unreadable as error:
            self.problems.append(error.problem)
            return None

    def _inputs(self, document: PolicyDocument) -> Inputs:
        given = document.inputs
        inputs = Inputs(
            thresholds=given.thresholds,
            features=_typed(given.features),
            request=_typed(given.request),
            status=given.status,
            lists=given.lists,
            velocity=tuple(document.velocity),
        )
        raw_inputs, raw_velocity = self._raw.get("inputs"), self._raw.get("velocity")
        for root in ("thresholds", "features", "request", "status", "lists"):
            names = list(getattr(given, root))
            for name in sorted({name for name in names if names.count(name) > 1}):
                self._note(line_of(raw_inputs, root), f"inputs: {root}.{name} stands there twice")
            for name in names:
                if not name.isidentifier():
                    self._note(line_of(raw_inputs, root), f"inputs: {name!r} is not a name")
        for name, limit in document.velocity.items():
            line = line_of(raw_velocity, name)
            if not name.isidentifier():
                self._note(line, f"velocity: {name!r} is not a name")
            if not 0 < limit.window_seconds <= VelocityLimit.LONGEST_SECONDS:
                self._note(
                    line, f"velocity {name}: a window has 1 to {VelocityLimit.LONGEST_SECONDS} seconds"
                )
        return inputs

    def _require_outcomes(self, document: PolicyDocument) -> None:
        if len(set(document.decisions)) != len(document.decisions) or not document.decisions:
            self._note(self._raw.line("decisions"), "decisions must be a list without repetition")
        self._require_outcome(document.default, document, self._raw.line("default"), "default")
        if (document.without_features == "rules_only") != (document.rules_only is not None):
            line = self._raw.line("rules_only" if document.rules_only else "without_features")
            self._note(line, "`rules_only` goes with `without_features: rules_only`, and only with it")
        if document.rules_only is not None:
            self._require_outcome(document.rules_only, document, self._raw.line("rules_only"), "rules_only")

    def _require_outcome(self, outcome: Outcome, document: PolicyDocument, line: int, place: str) -> None:
        if outcome.decision not in document.decisions:
            self._note(line, f"unknown decision {outcome.decision}", place)
        if outcome.reason_code not in reason_codes():
            self._note(line, f"reason code {outcome.reason_code} is not in the table of reason codes", place)

    # --- costs ----------------------------------------------------------------------------------------------

    def _costs(self, document: PolicyDocument, inputs: Inputs) -> Costs | None:
        if document.costs is None:
            return None
        raw, before = self._raw.get("costs"), len(self.problems)
        types = {
            path: kind
            for path, kind in inputs.types().items()
            if split(path)[0] in {"thresholds", "features", "request"}
        }
        sides: list[tuple[Expression, ...]] = []
        for side in ("positive", "negative"):
            given: dict[str, float | str] = getattr(document.costs, side)
            lines = raw.get(side)
            for name in sorted(set(given) ^ set(document.decisions)):
                self._note(line_of(lines, name), f"{side}: a cost for each decision, not {name}", "costs")
            found = [
                self._cost(given[name], types, line_of(lines, name), f"costs: {side}: {name}")
                for name in document.decisions
                if name in given
            ]
            sides.append(tuple(expression for expression in found if expression is not None))
        if len(self.problems) > before:
            return None
        costs = Costs(document.decisions, *sides)
        self._try_costs(costs, document.costs, raw, types)
        return costs

    def _cost(self, given: float | str, types: dict[str, Type], line: int, place: str) -> Expression | None:
        try:
            expression = compile_expression(given if isinstance(given, str) else repr(float(given)), types)
        except PolicyError as error:
            self._note(line, str(error), place)
            return None
        if expression.type not in {"double", "int"}:
            self._note(line, f"a cost is a number, not {said(expression.type)}", place)
            return None
        return expression

    def _try_costs(self, costs: Costs, document: CostsDocument, raw: Lined, types: dict[str, Type]) -> None:
        if not document.examples:
            self._note(raw.line(), "an example is missing", "costs")
        wanted = {"score"} | {f"{root}.{name}" if name else root for root, name in costs.fields}
        for number, example in enumerate(document.examples, start=1):
            place, line = f"costs: example {number}", _example_line(raw, number)
            values = self._given(example.given, wanted, types | {"score": "double"}, line, place)
            if values is None:
                continue
            cheapest = costs.cheapest(values["score"], cel.Context(values))
            if cheapest != example.cheapest:
                self._note(line, f"the cheapest decision is {cheapest}, the example says otherwise", place)

    # --- rules ----------------------------------------------------------------------------------------------

    def _rules(self, document: PolicyDocument) -> list[tuple[Rule, Lined]]:
        rules: list[tuple[Rule, Lined]] = []
        seen: set[str] = set()
        for raw in document.rules:
            if not isinstance(raw, Lined):
                self._note(self._raw.line("rules"), "a rule is a map", "a rule")
                continue
            rule = self._rule(raw, document)
            if isinstance(id_ := raw.get("id"), str):
                if id_ in seen:
                    self._note(raw.line(), "the id is used twice", _place(raw))
                seen.add(id_)
            if rule is not None:
                rules.append((rule, raw))
        return rules

    def _rule(self, raw: Lined, document: PolicyDocument) -> Rule | None:
        place = _place(raw)
        try:
            rule = convert(raw, RuleDocument, place)
        except Unreadable as error:
            self.problems.append(error.problem)
            return None
        if rule.decision not in document.decisions:
            self._note(raw.line("decision"), f"unknown decision {rule.decision}", place)
        if rule.reason_code not in reason_codes():
            self._note(
                raw.line("reason_code"),
                f"reason code {rule.reason_code} is not in the table of reason codes",
                place,
            )
        if rule.final and rule.mode == "shadow":
            self._note(raw.line("final"), "a shadow rule decides nothing and cannot be final", place)
        if not any(example.fires for example in rule.examples):
            self._note(raw.line("examples"), "an example in which the rule fires is missing", place)
        try:
            when = compile_expression(rule.when, self._types)
        except PolicyError as error:
            self._note(raw.line("when"), str(error), place)
            return None
        if when.type != "bool":
            self._note(raw.line("when"), f"the expression gives {said(when.type)}, not true or false", place)
            return None
        for number, example in enumerate(rule.examples, start=1):
            self._try(when, example, _example_line(raw, number), f"{place}: example {number}")
        if rule.decision not in document.decisions:
            return None
        fields = {name: getattr(rule, name) for name in RuleDocument.__struct_fields__ if name != "when"}
        return Rule(when=when, **fields)

    def _try(self, when: Expression, example: Example, line: int, place: str) -> None:
        values = self._given(example.given, when.paths, self._types, line, place)
        if values is None:
            return
        try:
            fired = when.evaluate(cel.Context(values))
        except CEL_ERRORS as error:
            if not any(value is None for value in values.values()):
                self._note(line, f"the expression fails: {str(error).splitlines()[0]}", place)
                return
            fired = False
        if fired != example.fires:
            verb = "fires" if fired else "does not fire"
            self._note(line, f"the rule {verb}, the example says otherwise", place)

    def _given(
        self, given: dict[str, Any], wanted: frozenset[str] | set[str], types: Mapping[str, Type], line: int,
        place: str,
    ) -> dict[str, Any] | None:  # fmt: skip
        """Return an example's values by flat variable, numbers as floats; None if they are not as needed."""
        if different := sorted(set(wanted).symmetric_difference(given)):
            self._note(line, f"it must give exactly the fields that are read, not {different}", place)
            return None
        values: dict[str, Any] = {}
        for path, value in given.items():
            kind = types[path]
            if not _is_of(value, kind):
                self._note(line, f"{path} is {said(kind)}, not {value!r}", place)
                return None
            number = kind == "double" and value is not None
            values[variable(*split(path))] = float(value) if number else value
        return values

    # --- rules that never fire or never matter --------------------------------------------------------------

    def _require_reach(self, rules: list[tuple[Rule, Lined]], document: PolicyDocument) -> None:
        domains = domains_of(self._types, document.decisions)
        severity = {decision: level for level, decision in enumerate(document.decisions)}
        for index, (rule, raw) in enumerate(rules):
            if never(rule.when.tree, domains):
                self._note(raw.line("when"), "the rule can never fire: its conditions exclude each other",
                           _place(raw))  # fmt: skip
                continue
            later_finals = [other for other, _ in rules[index + 1 :] if other.final and not rule.final]
            others = [other for other, _ in rules[:index]] + later_finals
            for other in others:
                if (why := _useless(rule, other, domains, severity)) is not None:
                    self._note(raw.line("when"), f"the rule can never matter: {why}", _place(raw))
                    break


def domains_of(types: Mapping[str, Type], decisions: tuple[str, ...]) -> Domains:
    """Return what is known of the fields of a policy before any rule is looked at."""
    bounds = {"score": (0.0, 1.0)}
    closed: dict[str, frozenset[Any]] = {CHEAPEST: frozenset(decisions)}
    for path, kind in types.items():
        root = split(path)[0]
        if root == "thresholds":
            bounds[path] = (0.0, 1.0)
        elif root == "status":
            closed[path] = frozenset(status.value for status in FeatureStatus)
        elif kind == "bool":
            closed[path] = frozenset({True, False})
    return Domains(bounds, closed)


def _useless(  # noqa: PLR0911 - one return a reason
    rule: Rule, other: Rule, domains: Domains, severity: Mapping[str, int]
) -> str | None:
    """Return why `rule` changes nothing beside `other`, None if it may.

    `other` stands before it, or is final. A shadow rule is there to be counted, so it always matters; so
    does a rule that gives a reason of its own.
    """
    if rule.mode == "shadow" or other.mode == "shadow":
        return None
    if other.final:
        if implies(rule.when.tree, other.when.tree, domains):
            return f"wherever it fires, the final rule {other.id} decides alone"
        return None
    if rule.final or severity[rule.decision] > severity[other.decision]:
        return None
    same = implies(rule.when.tree, other.when.tree, domains)
    if same and implies(other.when.tree, rule.when.tree, domains):
        return f"rule {other.id} before it has the same condition and is at least as severe"
    if same and rule.reason_code == other.reason_code:
        return (
            f"rule {other.id} before it fires whenever it does, with this reason, and is at least as severe"
        )
    return None


def _typed(given: Declared) -> dict[str, Type]:
    return dict(given) if isinstance(given, dict) else dict.fromkeys(given, "double")


def _is_of(value: Any, kind: Type) -> bool:
    if value is None:
        return True
    match kind:
        case "bool":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _place(raw: Lined) -> str:
    return f"rule {raw.get('id', '(no id)')}"


def _example_line(raw: Lined, number: int) -> int:
    examples: Iterator[Any] = iter(raw.get("examples") or [])
    for at, example in enumerate(examples, start=1):
        if at == number:
            return line_of(example) or raw.line("examples")
    return raw.line("examples")
