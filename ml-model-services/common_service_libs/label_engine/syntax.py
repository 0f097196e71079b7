"""The syntax of rules: CEL without functions, maps and indexing, parsed to a tree for the static checks.

    expression := or [ "?" or ":" expression ]
    or         := and { "||" and }
    and        := relation { "&&" relation }
    relation   := sum [ ("<" | "<=" | ">" | ">=" | "==" | "!=" | "in") sum ]
    sum        := product { ("+" | "-") product }
    product    := unary { ("*" | "/" | "%") unary }
    unary      := { "!" } primary | { "-" } primary
    primary    := literal | field | "(" expression ")" | "[" [ expression { "," expression } ] "]"

What is evaluated is CEL's own compilation of the same text, or what gives the same (`plain_rules.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common_service_libs.errors import PolicyError

MAX_NESTING = 50
LARGEST_WHOLE_NUMBER = 2**53
_TOKEN = re.compile(
    r"""
    (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
  | (?P<blank>\s+|//[^\n]*)
  | (?P<number>(?:\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+)(?![\w.]))
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\s*\.\s*[A-Za-z_][A-Za-z0-9_]*)*)
  | (?P<operator>&&|\|\||<=|>=|==|!=|[-+*/%!<>?:()\[\],])
    """,
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}
_WORDS = {"true": True, "false": False, "null": None}
RELATIONS = frozenset({"<", "<=", ">", ">=", "==", "!=", "in"})


class SyntaxProblem(PolicyError):
    """Text outside of the language; `at` is the offset in the expression."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True)
class Node:
    """Part of an expression; `at` is its offset in the text."""

    at: int


@dataclass(frozen=True)
class Literal(Node):
    """A number, a text, true, false or null."""

    value: float | int | str | bool | None


@dataclass(frozen=True)
class Field(Node):
    """A field as it is written, without blanks: `score`, `features.tx_amount`."""

    path: str


@dataclass(frozen=True)
class Unary(Node):
    """`!` or `-` before an operand."""

    operator: str
    operand: Any


@dataclass(frozen=True)
class Binary(Node):
    """Two operands around an operator."""

    operator: str
    left: Any
    right: Any


@dataclass(frozen=True)
class Ternary(Node):
    """`condition ? then : otherwise`."""

    condition: Any
    then: Any
    otherwise: Any


@dataclass(frozen=True)
class Items(Node):
    """A list of expressions."""

    items: tuple[Any, ...]


Tree = Literal | Field | Unary | Binary | Ternary | Items


@dataclass(frozen=True)
class Token:
    """A piece of text: its kind, the text itself, and where it stands."""

    kind: str
    text: str
    at: int

    @property
    def end(self) -> int:
        """The offset after it."""
        return self.at + len(self.text)


def tokens(text: str) -> Iterator[Token]:
    """Yield the tokens of `text`, blanks and comments as well; raises SyntaxProblem."""
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise SyntaxProblem(
                f"{text[at : at + 12].split(maxsplit=1)[0]!r} is not part of the rule language", at
            )
        yield Token(found.lastgroup or "", found.group(), at)
        at = found.end()


def parse(text: str) -> Tree:
    """Return the tree of an expression; raises SyntaxProblem."""
    return _Parser(text).whole()


def fields_of(tree: Tree) -> Iterator[Field]:
    """Yield every field that an expression reads, as often as it stands there."""
    match tree:
        case Field():
            yield tree
        case Unary():
            yield from fields_of(tree.operand)
        case Binary():
            yield from fields_of(tree.left)
            yield from fields_of(tree.right)
        case Ternary():
            for part in (tree.condition, tree.then, tree.otherwise):
                yield from fields_of(part)
        case Items():
            for item in tree.items:
                yield from fields_of(item)


def canonical(tree: Tree) -> str:
    """Return an expression as text with every bracket and without blanks: equal trees give equal texts."""
    match tree:
        case Literal():
            return repr(tree.value)
        case Field():
            return tree.path
        case Unary():
            return f"{tree.operator}({canonical(tree.operand)})"
        case Binary():
            return f"({canonical(tree.left)} {tree.operator} {canonical(tree.right)})"
        case Ternary():
            return f"({canonical(tree.condition)}?{canonical(tree.then)}:{canonical(tree.otherwise)})"
        case Items():
            return "[" + ",".join(canonical(item) for item in tree.items) + "]"


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [token for token in tokens(text) if token.kind != "blank"]
        self._next = 0
        self._depth = 0

    def whole(self) -> Tree:
        tree = self._expression()
        if (token := self._peek()) is not None:
            raise SyntaxProblem(f"not an expression: {token.text!r} was not expected here", token.at)
        return tree

    def _peek(self) -> Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self) -> Token:
        token = self._peek()
        if token is None:
            raise SyntaxProblem("not an expression: it ends too early", len(self._text))
        self._next += 1
        return token

    def _accept(self, *texts: str) -> Token | None:
        token = self._peek()
        if token is not None and token.kind != "string" and token.text in texts:
            self._next += 1
            return token
        return None

    def _expect(self, text: str) -> None:
        token = self._take()
        if token.text != text:
            raise SyntaxProblem(f"not an expression: {text!r} was expected, not {token.text!r}", token.at)

    def _expression(self) -> Tree:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise SyntaxProblem("the expression is nested too deeply", 0)
        tree = self._chain(0)
        if (token := self._accept("?")) is not None:
            then = self._chain(0)
            self._expect(":")
            tree = Ternary(token.at, tree, then, self._expression())
        self._depth -= 1
        return tree

    _LEVELS: tuple[tuple[str, ...], ...] = (
        ("||",), ("&&",), ("<", "<=", ">", ">=", "==", "!=", "in"), ("+", "-"), ("*", "/", "%"),
    )  # fmt: skip

    def _chain(self, level: int) -> Tree:
        if level == len(self._LEVELS):
            return self._unary()
        tree = self._chain(level + 1)
        while (token := self._accept(*self._LEVELS[level])) is not None:
            tree = Binary(token.at, token.text, tree, self._chain(level + 1))
            following = self._peek()
            if token.text in RELATIONS and following is not None and following.text in RELATIONS:
                raise SyntaxProblem("comparisons are not chained: write a < b && b < c", following.at)
        return tree

    def _unary(self) -> Tree:
        if (token := self._accept("!", "-")) is None:
            return self._primary()
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise SyntaxProblem("the expression is nested too deeply", token.at)
        operand = self._unary()
        self._depth -= 1
        if (
            token.text == "-"
            and isinstance(operand, Literal)
            and isinstance(operand.value, int | float)
            and not isinstance(operand.value, bool)
        ):
            return Literal(token.at, -operand.value)
        return Unary(token.at, token.text, operand)

    def _primary(self) -> Tree:
        token = self._take()
        if token.kind == "number":
            whole = token.text.isdigit()
            value = int(token.text) if whole else float(token.text)
            if whole and int(value) > LARGEST_WHOLE_NUMBER:
                raise SyntaxProblem(f"{token.text} is not exact beside other numbers; use a list", token.at)
            return Literal(token.at, value)
        if token.kind == "string":
            return Literal(token.at, _unescaped(token))
        if token.kind == "name":
            if (following := self._peek()) is not None and following.text in {"(", "["}:
                what = "functions are" if following.text == "(" else "indexing is"
                shown = f"{token.text}{'(...)' if following.text == '(' else '[...]'}"
                raise SyntaxProblem(f"{what} not part of the rule language: {shown}", token.at)
            if token.text in _WORDS:
                return Literal(token.at, _WORDS[token.text])
            return Field(token.at, re.sub(r"\s", "", token.text))
        if token.text == "(":
            tree = self._expression()
            self._expect(")")
            return tree
        if token.text == "[":
            return self._items(token)
        raise SyntaxProblem(f"not an expression: {token.text!r} was not expected here", token.at)

    def _items(self, opened: Token) -> Items:
        items: list[Tree] = []
        while self._accept("]") is None:
            if items:
                self._expect(",")
            items.append(self._expression())
        return Items(opened.at, tuple(items))


def _unescaped(token: Token) -> str:
    def character(found: re.Match[str]) -> str:
        if found.group(1) not in _ESCAPES:
            raise SyntaxProblem(f"unknown escape {found.group()} in a text", token.at)
        return _ESCAPES[found.group(1)]

    return re.sub(r"\\(.)", character, token.text[1:-1], flags=re.DOTALL)
