"""Which rules can never fire or never matter, found by simple reasoning about single fields.

An expression is brought into cases ("this and this and that"). Within a case every comparison of one field
with a constant narrows what the field may be; where nothing is left the case is impossible. What is not such
a comparison is taken as a fact that is true or not. CEL's logic with errors (a comparison with null is one)
is Kleene's, in which the laws used here hold: where this module says "never", it is never; where it says
nothing, nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from common_service_libs.label_engine.syntax import (
    Binary,
    Field,
    Items,
    Literal,
    Ternary,
    Tree,
    Unary,
    canonical,
)

MAX_CASES = 256
_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_ORDER = frozenset({"<", "<=", ">", ">="})


@dataclass(frozen=True)
class Atom:
    """A fact that is true or not: a comparison of a field with a constant, or an expression as text."""

    subject: str
    operator: str  # a relation, "is", "in" or "not in"
    value: Any


Case = tuple[Atom, ...]


class TooManyCases(Exception):
    """The expression has more cases than are looked at."""


@dataclass
class Range:
    """What a field may still be."""

    null: bool = True
    value: bool = True  # whether it may be anything but null
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    allowed: set[Any] | None = None
    excluded: set[Any] = field(default_factory=set)

    @property
    def empty(self) -> bool:
        """Whether nothing is left."""
        return not self.null and not self._some_value()

    def _some_value(self) -> bool:
        if not self.value or self.low > self.high:
            return False
        if self.low == self.high and (self.low_open or self.high_open or self.low in self.excluded):
            return False
        if self.allowed is None:
            return True
        return any(option not in self.excluded and self._inside(option) for option in self.allowed)

    def _inside(self, option: Any) -> bool:
        if isinstance(option, bool) or not isinstance(option, int | float):
            return True
        above = option > self.low or (option == self.low and not self.low_open)
        below = option < self.high or (option == self.high and not self.high_open)
        return above and below

    def narrow(self, operator: str, value: Any) -> None:
        """Take away what `operator value` rules out."""
        if operator == "in":
            self._keep(set(value))
        elif operator == "not in":
            for option in value:
                self.narrow("!=", option)
        elif operator == "==":
            self._keep({value})
        elif operator == "!=":
            if value is None:
                self.null = False
            else:
                self.excluded.add(value)
        elif isinstance(value, str):
            self.null = False  # the order of texts is not reasoned about
        else:
            self.null = False
            self._bound(operator, value)

    def _keep(self, options: set[Any]) -> None:
        self.null = self.null and None in options
        options = options - {None}
        self.value = self.value and bool(options)
        self.allowed = options if self.allowed is None else self.allowed & options

    def _bound(self, operator: str, value: float) -> None:
        opened = operator in {"<", ">"}
        if operator in {">", ">="} and (value, opened) > (self.low, self.low_open):
            self.low, self.low_open = value, opened
        if operator in {"<", "<="} and (-value, opened) > (-self.high, self.high_open):
            self.high, self.high_open = value, opened


class Domains:
    """What is known of fields from the start: bounds, closed sets of values, fields that are never null."""

    def __init__(
        self,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        closed: Mapping[str, frozenset[Any]] | None = None,
    ) -> None:
        self._bounds = dict(bounds or {})
        self._closed = dict(closed or {})

    def range_of(self, subject: str) -> Range:
        """Return what the field may be before any rule is looked at."""
        found = Range()
        if subject in self._bounds:
            found.low, found.high = self._bounds[subject]
        if subject in self._closed:
            found.allowed = set(self._closed[subject])
        return found


def never(tree: Tree, domains: Domains) -> bool:
    """Return whether the expression is certainly never true."""
    try:
        return not possible_cases(tree, domains)
    except TooManyCases:
        return False


def implies(narrow: Tree, wide: Tree, domains: Domains) -> bool:
    """Return whether `wide` is certainly true wherever `narrow` is.

    Every possible case of `narrow` must contradict the opposite of some case of `wide`, fact by fact, and
    must be sure to be no error: each fact of that case of `wide` follows from what `narrow` says of its
    subject.
    """
    if canonical(narrow) == canonical(wide):
        return True
    try:
        cases, targets = possible_cases(narrow, domains), possible_cases(wide, domains)
    except TooManyCases:
        return False
    return bool(cases) and all(any(_entails(case, target, domains) for target in targets) for case in cases)


def possible_cases(tree: Tree, domains: Domains) -> list[Case]:
    """Return the cases in which the expression may be true; raises TooManyCases."""
    return [case for case in cases_of(tree, True) if _possible(case, domains)]


def _possible(case: Case, domains: Domains) -> bool:
    facts: dict[str, bool] = {}
    ranges: dict[str, Range] = {}
    for atom in case:
        if atom.operator == "is":
            if facts.setdefault(atom.subject, atom.value) != atom.value:
                return False
            continue
        if atom.subject not in ranges:
            ranges[atom.subject] = domains.range_of(atom.subject)
        ranges[atom.subject].narrow(atom.operator, atom.value)
    return not any(found.empty for found in ranges.values())


def _entails(case: Case, target: Case, domains: Domains) -> bool:
    return all(_fact_follows(case, atom, domains) for atom in target)


def _fact_follows(case: Case, wanted: Atom, domains: Domains) -> bool:
    if wanted in case:
        return True
    about = [atom for atom in case if atom.subject == wanted.subject]
    if wanted.operator == "is" or not about:
        return False
    if wanted.operator in _ORDER and (isinstance(wanted.value, str) or not _never_null(about, domains)):
        return False  # of a null it would be an error
    return all(not _possible((*about, opposite), domains) for opposite in [_opposite(wanted)])


def _never_null(about: list[Atom], domains: Domains) -> bool:
    return not _possible((*about, Atom(about[0].subject, "==", None)), domains)


def _opposite(atom: Atom) -> Atom:
    match atom.operator:
        case "is":
            return Atom(atom.subject, "is", not atom.value)
        case "in":
            return Atom(atom.subject, "not in", atom.value)
        case "not in":
            return Atom(atom.subject, "in", atom.value)
    return Atom(atom.subject, _OPPOSITE[atom.operator], atom.value)


def cases_of(tree: Tree, wanted: bool) -> list[Case]:
    """Return the cases in which the expression is `wanted`; raises TooManyCases."""
    match tree:
        case Literal(value=value):
            return [()] if value is wanted else []
        case Unary(operator="!"):
            return cases_of(tree.operand, not wanted)
        case Binary(operator="&&" | "||"):
            left, right = cases_of(tree.left, wanted), cases_of(tree.right, wanted)
            return _both(left, right) if (tree.operator == "&&") is wanted else _limited(left + right)
        case Ternary():
            yes = _both(cases_of(tree.condition, True), cases_of(tree.then, wanted))
            no = _both(cases_of(tree.condition, False), cases_of(tree.otherwise, wanted))
            return _limited(yes + no)
    return _of_atom(tree, wanted)


def _both(left: list[Case], right: list[Case]) -> list[Case]:
    return _limited([tuple(dict.fromkeys((*a, *b))) for a, b in _pairs(left, right)])


def _pairs(left: list[Case], right: list[Case]) -> Iterator[tuple[Case, Case]]:
    if len(left) * len(right) > MAX_CASES:
        raise TooManyCases
    for a in left:
        for b in right:
            yield a, b


def _limited(cases: list[Case]) -> list[Case]:
    if len(cases) > MAX_CASES:
        raise TooManyCases
    return list(dict.fromkeys(cases))


def _of_atom(tree: Tree, wanted: bool) -> list[Case]:
    if isinstance(tree, Field):
        return [(Atom(tree.path, "==", wanted),)]
    found = _comparison(tree)
    if found is None:
        known = _constant(tree)
        if known is not None:
            return [()] if known is wanted else []
        return [(Atom(canonical(tree), "is", wanted),)]
    return [(found if wanted else _opposite(found),)]


def _comparison(tree: Tree) -> Atom | None:
    """Return a comparison of one field with constants, or None for anything else."""
    if not isinstance(tree, Binary):
        return None
    left, right, operator = tree.left, tree.right, tree.operator
    if operator == "in":
        if isinstance(left, Field) and isinstance(right, Items) and all(map(_is_literal, right.items)):
            return Atom(left.path, "in", tuple(item.value for item in right.items))
        return None
    if operator not in _MIRRORED:
        return None
    if isinstance(right, Field) and isinstance(left, Literal):
        left, right, operator = right, left, _MIRRORED[operator]
    if not (isinstance(left, Field) and isinstance(right, Literal)):
        return None
    return Atom(left.path, operator, right.value)


def _is_literal(tree: Tree) -> bool:
    return isinstance(tree, Literal)


def _constant(tree: Tree) -> bool | None:
    """Return the value of a comparison of two constants, None where there is none."""
    if not (isinstance(tree, Binary) and isinstance(tree.left, Literal) and isinstance(tree.right, Literal)):
        return None
    left, right = tree.left.value, tree.right.value
    match tree.operator:
        case "==":
            return left == right
        case "!=":
            return left != right
    if left is None or right is None or tree.operator not in _ORDER:
        return None
    compare = {"<": lambda: left < right, "<=": lambda: left <= right,  # type: ignore[operator]
               ">": lambda: left > right, ">=": lambda: left >= right}  # type: ignore[operator]  # fmt: skip
    return bool(compare[tree.operator]())
