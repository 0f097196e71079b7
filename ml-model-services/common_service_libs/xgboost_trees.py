"""XGBoost's trees in LightGBM's text form: the same model for the library whose single row is the cheapest.

LightGBM's C API keeps what a prediction needs from call to call and scores a row of 300 trees in some
microseconds; XGBoost's builds it anew each time. Nothing is approximated. XGBoost goes left where `x < t` in
single precision, LightGBM where `x <= t` in double: the threshold becomes the single before `t`. A null
follows the direction that XGBoost learned. Leaves are added in double precision, where XGBoost adds singles.

Only what this project trains is taken over, trees for one binary logistic score without categorical splits;
anything else is None, and XGBoost itself scores it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common_service_libs.errors import BundleError

_SIZES = {b"i": 1, b"U": 1, b"I": 2, b"l": 4, b"L": 8, b"d": 4, b"D": 8}
_TYPES = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_NULL_GOES_RIGHT, _NULL_GOES_LEFT = 8, 10  # "missing is NaN", and the default direction


class Forest(NamedTuple):
    """A model in LightGBM's text form; the score is the logistic function of `base` and the sum of leaves."""

    text: str
    base: float


def read_ubj(content: bytes) -> Any:
    """Return the value in Universal Binary JSON; typed arrays become NumPy arrays. Raises BundleError."""
    try:
        value, end = _Reader(content).value(0)
    except (IndexError, KeyError, ValueError, struct.error, RecursionError) as error:
        raise BundleError(f"not an XGBoost model: not Universal Binary JSON: {error}") from None
    if end != len(content):
        raise BundleError("not an XGBoost model: it goes on after its end")
    return value


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def value(self, at: int) -> tuple[Any, int]:
        mark, at = self._content[at : at + 1], at + 1
        if mark in _TYPES:
            return self._numbers(mark, 1, at)[0].item(), at + _SIZES[mark]
        match mark:
            case b"{":
                return self._object(at)
            case b"[":
                return self._array(at)
            case b"S":
                return self._text(at)
            case b"T" | b"F":
                return mark == b"T", at
            case b"Z":
                return None, at
        raise ValueError(f"unknown mark {mark!r} at {at - 1}")

    def _length(self, at: int) -> tuple[int, int]:
        length, at = self.value(at)
        if not isinstance(length, int) or not 0 <= length <= len(self._content):
            raise ValueError(f"a length of {length!r} at {at}")
        return length, at

    def _text(self, at: int) -> tuple[str, int]:
        length, at = self._length(at)
        return self._content[at : at + length].decode(), at + length

    def _numbers(self, mark: bytes, count: int, at: int) -> np.ndarray:
        return np.frombuffer(self._content, _TYPES[mark], count, at)

    def _array(self, at: int) -> tuple[Any, int]:
        if self._content[at : at + 1] == b"$":
            mark = self._content[at + 1 : at + 2]
            if self._content[at + 2 : at + 3] != b"#":
                raise ValueError(f"a typed array without length at {at}")
            count, at = self._length(at + 3)
            return self._numbers(mark, count, at), at + count * _SIZES[mark]
        values = []
        if self._content[at : at + 1] == b"#":
            count, at = self._length(at + 1)
            for _ in range(count):
                value, at = self.value(at)
                values.append(value)
            return values, at
        while self._content[at : at + 1] != b"]":
            value, at = self.value(at)
            values.append(value)
        return values, at + 1

    def _object(self, at: int) -> tuple[dict[str, Any], int]:
        members: dict[str, Any] = {}
        while self._content[at : at + 1] != b"}":
            name, at = self._text(at)
            members[name], at = self.value(at)
        return members, at + 1


def forest_of(content: bytes, features: int) -> Forest | None:
    """Return an XGBoost model (UBJ) in LightGBM's text form, None if that form cannot say the same.

    Raises BundleError for a model of another number of features, or no model at all.
    """
    document = read_ubj(content)
    try:
        return _converted(document["learner"], features)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"not an XGBoost model: {type(error).__name__}: {error}") from None


def _converted(learner: Mapping[str, Any], features: int) -> Forest | None:
    booster, parameters = learner["gradient_booster"], learner["learner_model_param"]
    if (count := int(parameters["num_feature"])) != features:
        raise BundleError(f"the model takes {count} features, not {features}")
    if learner["objective"]["name"] != "binary:logistic" or booster["name"] != "gbtree":
        return None
    trees = booster["model"]["trees"]
    if not trees or not all(_simple(tree) for tree in trees) or np.any(booster["model"]["tree_info"]):
        return None
    return Forest(_text(trees, features), _logit(parameters["base_score"]))


def _simple(tree: Mapping[str, Any]) -> bool:
    if not np.all(np.isfinite(tree["split_conditions"])):
        raise ValueError("a threshold or leaf that is no number")
    return int(tree["tree_param"]["size_leaf_vector"]) <= 1 and not np.any(tree["split_type"])


def _logit(base_score: str) -> float:
    p = float(np.float32(base_score.strip("[]")))
    return math.log(p / (1.0 - p))


def _text(trees: Sequence[Mapping[str, Any]], features: int) -> str:
    blocks = [f"Tree={number}\n{_tree(tree, features)}\n\n\n" for number, tree in enumerate(trees)]
    names = " ".join(f"f{index}" for index in range(features))
    head = {
        "version": "v4", "num_class": 1, "num_tree_per_iteration": 1, "label_index": 0,
        "max_feature_idx": features - 1, "objective": "binary sigmoid:1", "feature_names": names,
        "feature_infos": " ".join(["none"] * features),
        "tree_sizes": " ".join(str(len(block)) for block in blocks),
    }  # fmt: skip
    return "tree\n" + _lines(head) + "\n\n" + "".join(blocks) + "end of trees\n"


def _tree(tree: Mapping[str, Any], features: int) -> str:
    """Return one tree; its splits are numbered 0, 1, ..., its leaves -1, -2, ...

    Raises ValueError for what no tree is: the library that gets it would not look.
    """
    left, right = tree["left_children"].tolist(), tree["right_children"].tolist()
    order, waiting, met = [], [0], bytearray(len(left))
    while waiting:
        node = waiting.pop()
        if not 0 <= node < len(left) or met[node]:
            raise ValueError("the nodes are no tree")
        met[node] = 1
        order.append(node)
        if left[node] != -1:
            waiting += [right[node], left[node]]
    splits = [node for node in order if left[node] != -1]
    leaves = [node for node in order if left[node] == -1]
    indices = tree["split_indices"].tolist()
    read = [indices[node] for node in splits]
    if not all(0 <= feature < features for feature in read):
        raise ValueError("a split on a feature that there is not")
    number = {node: index for index, node in enumerate(splits)}
    number |= {node: ~index for index, node in enumerate(leaves)}
    conditions = tree["split_conditions"].astype(np.float32)
    below = np.nextafter(conditions, np.float32(-np.inf)).astype(np.float64).tolist()
    goes_left = tree["default_left"].tolist()
    members = {
        "num_leaves": len(leaves),
        "num_cat": 0,
        "split_feature": _row(read),
        "split_gain": _row(0 for _ in splits),
        "threshold": _row(repr(below[node]) for node in splits),
        "decision_type": _row(_NULL_GOES_LEFT if goes_left[node] else _NULL_GOES_RIGHT for node in splits),
        "left_child": _row(number[left[node]] for node in splits),
        "right_child": _row(number[right[node]] for node in splits),
        "leaf_value": _row(repr(float(conditions[node])) for node in leaves),
        "is_linear": 0,
        "shrinkage": 1,
    }
    return _lines(members)


def _row(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def _lines(members: Mapping[str, object]) -> str:
    return "\n".join(f"{name}={value}" for name, value in members.items())
