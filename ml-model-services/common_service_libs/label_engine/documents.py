"""YAML that knows its lines: documents read into structs, every problem with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import yaml

from common_service_libs.errors import PolicyError

T = TypeVar("T")
_PATH = re.compile(r" - at `(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.(?P<key>\w+)|\[(?P<index>\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`")
_START = ""  # no key of a document


@dataclass(frozen=True, order=True)
class Problem:
    """Something wrong with a file: the line (0 where there is none), the rule if it is in one, and what."""

    line: int
    place: str
    message: str

    def said(self, file: str) -> str:
        """Return the problem as `file:line: place: message`."""
        line = f"{file}:{self.line}" if self.line else file
        return ": ".join(part for part in (line, self.place, self.message) if part)


class WrongFile(PolicyError):
    """A file with problems; the message names them all."""

    def __init__(self, file: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("; ".join(problem.said(file) for problem in self.problems))


class Lined(dict[Any, Any]):
    """A map of a YAML document, with the line of each key and of its own beginning."""

    def __init__(self, values: dict[Any, Any], lines: dict[Any, int]) -> None:
        super().__init__(values)
        self.lines = lines

    def line(self, key: str = _START) -> int:
        """Return the line of a key, or of the map where it does not have the key."""
        return self.lines.get(key, self.lines[_START])


def line_of(raw: Any, key: str = _START) -> int:
    """Return the line of a key of a map; 0 for what is no map."""
    return raw.line(key) if isinstance(raw, Lined) else 0


def read_yaml(content: bytes) -> Any:
    """Return the document in `content`, maps as Lined; raises Unreadable."""
    try:
        return yaml.load(content, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise Unreadable(Problem(line, "", error.problem or "not YAML")) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Unreadable(Problem(0, "", f"not YAML: {' '.join(str(error).split())}")) from None
    except (ValueError, RecursionError) as error:  # a date that is none, a number that is too long
        raise Unreadable(Problem(0, "", f"not YAML: {error}")) from None


class Unreadable(PolicyError):
    """The document cannot be read at all."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def convert(raw: Any, kind: type[T], place: str = "") -> T:
    """Return `raw` as a struct; raises Unreadable with the line of what is wrong."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _PATH.search(message)
        path, said = (found["path"], message[: found.start()]) if found else ("$", message)
        line = _line_at(raw, path, said)
        shown = path.removeprefix("$").removeprefix(".")
        raise Unreadable(Problem(line, place, f"{shown}: {said}" if shown else said)) from None


def _line_at(raw: Any, path: str, said: str) -> int:
    """Return the line that a path of msgspec leads to, as far as it can be followed."""
    line, at = line_of(raw), raw
    for step in _STEP.finditer(path):
        key, index = step["key"], step["index"]
        if key is not None and isinstance(at, Lined):
            line, at = at.line(key), at.get(key)
        elif index is not None and index != "..." and isinstance(at, list) and int(index) < len(at):
            at = at[int(index)]
            line = line_of(at) or line
        else:
            break
    if isinstance(at, Lined) and (unknown := _UNKNOWN.search(said)):
        return at.line(unknown["name"])
    return line


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML without duplicate keys; every map knows the lines of its keys."""

    def construct_lined(self, node: yaml.MappingNode) -> Lined:
        lines: dict[Any, int] = {_START: node.start_mark.line + 1}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key} is not a text", problem_mark=key_node.start_mark
                )
            if key in lines and key != _START:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key} stands twice", problem_mark=key_node.start_mark
                )
            lines[key] = key_node.start_mark.line + 1
        return Lined(self.construct_mapping(node, deep=True), lines)


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_lined)
