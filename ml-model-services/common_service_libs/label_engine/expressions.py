"""CEL expressions over declared fields: checked when a policy is read, compiled once.

A field is `root.name` (`features.tx_amount`) or a bare root (`score`, `degraded`). Before compilation
`root.name` becomes one flat variable: handing over a dozen flat values costs a third of handing over nested
maps.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import cel

from common_service_libs.errors import PolicyError

BARE_FIELDS = frozenset({"score", "degraded"})
ROOTS = frozenset({"thresholds", "features", "request", "status"})

_TOKEN = re.compile(
    r"""
    (?P<string>(?:[rb]{0,2})(?:"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
  | (?P<comment>//[^\n]*)
  | (?P<number>(?:0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)u?)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\s*\.\s*[A-Za-z_][A-Za-z0-9_]*)*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_WORDS = frozenset({"true", "false", "null", "in"})


@dataclass(frozen=True)
class Expression:
    """A compiled expression, and the fields it reads as (root, name); a bare field has an empty name."""

    text: str
    fields: frozenset[tuple[str, str]]
    program: cel.Program

    def evaluate(self, context: cel.Context) -> Any:
        """Return the value in a context of flat variables; raises what CEL raises."""
        return self.program.execute(context)


def variable(root: str, name: str) -> str:
    """Return the flat variable of a field."""
    return f"{root}__{name}" if name else root


def compile_expression(text: str, declared: Mapping[str, Collection[str]]) -> Expression:
    """Compile `text`; `declared` lists the names under each root.

    Raises PolicyError for an unknown field, a function call, or text that is not CEL.
    """
    fields: set[tuple[str, str]] = set()
    flat = []
    for token in _TOKEN.finditer(text):
        if token.lastgroup != "name" or token.group() in _WORDS:
            flat.append(token.group())
            continue
        if text[token.end() :].lstrip().startswith("("):
            raise PolicyError(f"functions are not part of the rule language: {token.group()}(...)")
        field = _field(token.group(), declared)
        fields.add(field)
        flat.append(variable(*field))
    try:
        program = cel.compile("".join(flat))
    except ValueError as error:
        raise PolicyError(f"not an expression: {text.strip()!r}: {_first_line(error)}") from None
    return Expression(text, frozenset(fields), program)


def _field(path: str, declared: Mapping[str, Collection[str]]) -> tuple[str, str]:
    parts = [part.strip() for part in path.split(".")]
    if len(parts) == 1 and parts[0] in BARE_FIELDS:
        return parts[0], ""
    if len(parts) == 2 and parts[0] in ROOTS:
        if parts[1] in declared.get(parts[0], ()):
            return parts[0], parts[1]
        raise PolicyError(f"unknown field {path}: not among the inputs of the policy")
    known = ", ".join(sorted(BARE_FIELDS) + sorted(f"{root}.<name>" for root in ROOTS))
    raise PolicyError(f"unknown field {path}: a rule reads {known}")


def _first_line(error: Exception) -> str:
    lines = str(error).split("ERROR: <input>:", 1)
    return lines[-1].splitlines()[0].strip()
