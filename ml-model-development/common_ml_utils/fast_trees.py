"""Boosted trees as flat arrays, evaluated by compiled loops: microseconds a row, the library's own scores.

The libraries spend most of a one-row call on preparing it. Here the trees of a loaded model are laid out
once, and all take one step at a time, without a branch: `children[2 * node + (value >= threshold)]`. What is
particular about missing values, zeros and categories is settled before, once a row: each kind of decision on
a feature has a column of its own, holding a number for which that comparison is right. XGBoost's trees are
compared and summed in float32, LightGBM's in float64, in the order in which the libraries do.

numba compiles on the first call in a process and keeps the machine code beside this file or in the user's
cache folder (`NUMBA_CACHE_DIR` names another); where no folder can be written, every process compiles anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from common_ml_utils.errors import BundleError
from common_ml_utils.native_models import NativeModel

# How a column reads its feature: what a missing value (and, in LightGBM, a zero) becomes.
MISSING_LEFT, MISSING_RIGHT, MISSING_ZERO, ZERO_LEFT, ZERO_RIGHT, CATEGORY = range(6)
LIGHTGBM_ZERO = float(np.float32(1e-35))
"""LightGBM reads smaller values as zero."""
LIGHTGBM_LARGEST = float(np.finfo(np.float64).max)
"""An infinite value stays below an infinite threshold, which LightGBM writes where only nulls go right."""
BLOCK = 64
"""Rows that descend a tree together in the batch path: the tree stays in the processor's nearest cache."""


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on the first call; with the cache on disk where there is a folder for it."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no folder it can write
        return numba.njit(nogil=True)(function)


@_compiled
def _fill(row, reading, columns):  # type: ignore[no-untyped-def]
    """Write one row's columns."""
    features, rules, offsets, sizes, members, zero, largest = reading
    for j in range(len(features)):
        value = row[features[j]]
        rule = rules[j]
        if rule == CATEGORY:
            # Truncated, as LightGBM does; what is no known category goes right.
            known = -1.0 < value < sizes[j]
            columns[j] = members[offsets[j] + int(value)] if known else 1.0
            continue
        if abs(value) <= zero:
            value = 0.0
        elif value > largest:
            value = largest
        absent = np.isnan(value)
        if rule == MISSING_RIGHT:
            columns[j] = np.inf if absent else value
        elif rule == MISSING_ZERO:
            columns[j] = 0.0 if absent else value
        elif rule == ZERO_LEFT:
            columns[j] = np.nan if absent or value == 0.0 else value
        elif rule == ZERO_RIGHT:
            columns[j] = np.inf if absent or value == 0.0 else value
        else:
            columns[j] = value  # NaN is never >= a threshold: it goes left


@_compiled
def _score_row(row, trees, reading):  # type: ignore[no-untyped-def]
    """Return P(positive) of one row: all trees that are not at their leaves descend one level at a time."""
    thresholds, tests, children, roots, depths, places, start = trees
    columns = np.empty(len(reading[0]), thresholds.dtype)
    _fill(row, reading, columns)
    nodes = roots.copy()
    descending = len(nodes)
    for level in range(depths[0]):
        while depths[descending - 1] <= level:
            descending -= 1
        for t in range(descending):
            node = nodes[t]
            nodes[t] = children[2 * node + (columns[tests[node]] >= thresholds[node])]
    margin = start[0]
    for place in places:
        margin += thresholds[nodes[place]]
    return 1.0 / (1.0 + np.exp(-np.float64(margin)))


@_compiled
def _score_rows(matrix, trees, reading, scores):  # type: ignore[no-untyped-def]
    """Write P(positive) of every row: blocks of rows descend one tree after the other."""
    thresholds, tests, children, roots, depths, places, start = trees
    width = len(reading[0])
    columns = np.zeros(BLOCK * width, thresholds.dtype)
    nodes = np.empty(BLOCK, np.int32)
    margins = np.empty(BLOCK, thresholds.dtype)
    for first in range(0, len(matrix), BLOCK):
        count = min(BLOCK, len(matrix) - first)
        for r in range(count):
            _fill(matrix[first + r], reading, columns[r * width : (r + 1) * width])
        margins[:] = start[0]
        for t in places:
            nodes[:] = roots[t]
            for _ in range(depths[t]):
                for r in range(BLOCK):
                    node = nodes[r]
                    nodes[r] = children[2 * node + (columns[r * width + tests[node]] >= thresholds[node])]
            for r in range(BLOCK):
                margins[r] += thresholds[nodes[r]]
        for r in range(count):
            scores[first + r] = 1.0 / (1.0 + np.exp(-np.float64(margins[r])))


@dataclass(frozen=True)
class Trees:
    """A model's trees end to end, as the libraries number them; a leaf is a node without children (-1).

    Per node: `values` is the threshold (a value >= it goes right) or a leaf's output; `features`, `rules` and
    `sets` (the categories that go left, or None) say how the value is read; `left` and `right` count from the
    tree's own root, which is its first node.
    """

    values: np.ndarray
    features: np.ndarray
    rules: np.ndarray
    sets: Sequence[frozenset[int] | None]
    left: np.ndarray
    right: np.ndarray
    sizes: np.ndarray


class Forest:
    """Boosted trees of one logistic output, ready to score; safe to share between threads."""

    def __init__(
        self, trees: Trees, features: int, margin: float, zero: float = -1.0, largest: float = np.inf
    ) -> None:
        self.features = features
        first = np.cumsum(trees.sizes) - trees.sizes
        own = np.arange(len(trees.values))
        leaf = trees.left < 0
        offset = np.repeat(first, trees.sizes)
        children = np.stack(
            [np.where(leaf, own, trees.left + offset), np.where(leaf, own, trees.right + offset)], axis=1
        )
        end = np.repeat(first + trees.sizes, trees.sizes)
        if ((children < offset[:, None]) | (children >= end[:, None])).any():
            raise BundleError("a tree of the model has a branch that leads out of it")
        reached, depths = _descend(children, leaf, first)
        inner = reached & ~leaf
        if ((trees.features[inner] < 0) | (trees.features[inner] >= features)).any():
            raise BundleError(f"a tree of the model asks for a feature beyond the {features} it takes")
        tests, columns = _columns(trees, inner)
        kind = trees.values.dtype
        sets = [chosen for _, _, chosen in columns]
        sizes = [0 if chosen is None else max(chosen, default=-1) + 1 for chosen in sets]
        members = np.ones(max(sum(sizes), 1), kind)
        offsets = np.cumsum(sizes) - sizes
        for start, chosen in zip(offsets, sets, strict=True):
            members[[start + category for category in sorted(chosen or ())]] = 0.0
        deepest_first = np.argsort(-depths, kind="stable")
        self._trees = (
            np.ascontiguousarray(trees.values),
            tests,
            np.ascontiguousarray(children.reshape(-1).astype(np.int32)),
            first[deepest_first].astype(np.int32),
            depths[deepest_first],
            np.argsort(deepest_first).astype(np.int32),  # where each tree stands: leaves are summed in order
            np.array([margin], kind),
        )
        self._reading = (
            np.array([feature for feature, _, _ in columns], np.int32),
            np.array([rule for _, rule, _ in columns], np.int32),
            np.asarray(offsets, np.int32),
            np.array(sizes, np.int32),
            members,
            zero,
            largest,
        )

    def score(self, row: np.ndarray) -> float:
        """Return P(positive) of one encoded row: float64, contiguous, shape (features,), null as NaN."""
        if row.shape != (self.features,):
            raise BundleError(f"a row of shape {row.shape}, the model takes {self.features} features")
        return _score_row(row, self._trees, self._reading)

    def scores(self, matrix: np.ndarray) -> np.ndarray:
        """Return P(positive) of each row of an encoded matrix."""
        if matrix.ndim != 2 or matrix.shape[1] != self.features:
            raise BundleError(f"a matrix of shape {matrix.shape}, the model takes {self.features} features")
        scores = np.empty(len(matrix), np.float64)
        _score_rows(np.ascontiguousarray(matrix, np.float64), self._trees, self._reading, scores)
        return scores


def forest_of(model: NativeModel) -> Forest:
    """Lay out a loaded model; raises BundleError for one that is not boosted trees with a logistic output."""
    readers = {"xgboost": _read_xgboost, "lightgbm": _read_lightgbm}
    try:
        return readers[model.kind](model)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise BundleError(f"the trees of the {model.kind} model can't be laid out: {error!r}") from error


def _descend(children: np.ndarray, leaf: np.ndarray, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which nodes a row can reach, and each tree's depth; raises BundleError where branches meet."""
    reached = np.zeros(len(children), bool)
    depths = np.zeros(len(roots), np.int32)
    level, tree, depth = roots, np.arange(len(roots)), 0
    while len(level):
        if reached[level].any() or len(np.unique(level)) != len(level):
            raise BundleError("a tree of the model is no tree: two branches lead to one node")
        reached[level] = True
        depths[tree] = depth
        inner = ~leaf[level]
        level, tree = children[level[inner]].reshape(-1), np.repeat(tree[inner], 2)
        depth += 1
    return reached, depths


def _columns(
    trees: Trees, inner: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, int, frozenset[int] | None]]]:
    """Return each node's column, and the columns: one for each way in which a feature is read."""
    tests = np.zeros(len(trees.values), np.int32)
    columns: dict[tuple[int, int, frozenset[int] | None], int] = {}
    for node in np.flatnonzero(inner).tolist():
        key = (int(trees.features[node]), int(trees.rules[node]), trees.sets[node])
        tests[node] = columns.setdefault(key, len(columns))
    return tests, list(columns) or [(0, MISSING_LEFT, None)]


def _read_xgboost(model: Any) -> Forest:
    learner = json.loads(bytes(model.booster.save_raw("json")))["learner"]
    objective, booster = learner["objective"]["name"], learner["gradient_booster"]["name"]
    if objective != "binary:logistic" or booster != "gbtree":
        raise BundleError(
            f"a release bundle takes gbtree with binary:logistic, not {booster} with {objective}"
        )
    [base] = json.loads(f"[{learner['learner_model_param']['base_score'].strip('[]')}]")
    trees = learner["gradient_booster"]["model"]["trees"]
    if any(any(tree["split_type"]) for tree in trees):
        raise BundleError("a release bundle takes XGBoost trees with numeric splits only")

    def joined(name: str, kind: Any) -> np.ndarray:
        return np.concatenate([np.asarray(tree[name], kind) for tree in trees])

    one = np.float32(1)
    return Forest(
        Trees(
            values=joined("split_conditions", np.float32),
            features=joined("split_indices", np.int64),
            rules=np.where(joined("default_left", bool), MISSING_LEFT, MISSING_RIGHT),
            sets=[None] * sum(len(tree["left_children"]) for tree in trees),
            left=joined("left_children", np.int64),
            right=joined("right_children", np.int64),
            sizes=np.array([len(tree["left_children"]) for tree in trees]),
        ),
        features=int(learner["learner_model_param"]["num_feature"]),
        margin=float(-np.log(one / np.float32(base) - one)),
    )


def _read_lightgbm(model: Any) -> Forest:
    header, *blocks = model.booster.model_to_string().split("\n\nend of trees")[0].split("\nTree=")
    about = _fields(header)
    if about["objective"].split() != ["binary", "sigmoid:1"] or "average_output" in header.split("\n"):
        raise BundleError(
            f"a release bundle takes boosting with binary sigmoid:1, not {about['objective']!r}"
        )
    trees = [_lightgbm_tree(_fields(block)) for block in blocks]
    return Forest(
        Trees(
            values=np.concatenate([tree.values for tree in trees]),
            features=np.concatenate([tree.features for tree in trees]),
            rules=np.concatenate([tree.rules for tree in trees]),
            sets=[chosen for tree in trees for chosen in tree.sets],
            left=np.concatenate([tree.left for tree in trees]),
            right=np.concatenate([tree.right for tree in trees]),
            sizes=np.array([len(tree.values) for tree in trees]),
        ),
        features=int(about["max_feature_idx"]) + 1,
        margin=0.0,
        zero=LIGHTGBM_ZERO,
        largest=LIGHTGBM_LARGEST,
    )


def _fields(text: str) -> dict[str, str]:
    """Return the `name=value` lines of a part of LightGBM's text format."""
    return {name: value for name, found, value in (line.partition("=") for line in text.split("\n")) if found}


def _lightgbm_tree(fields: Mapping[str, str]) -> Trees:
    """Read one tree: its inner nodes first, then its leaves, which LightGBM numbers ~leaf."""
    if fields.get("is_linear", "0") != "0":
        raise BundleError("a release bundle takes LightGBM trees with constant leaves only")

    def numbers(name: str, kind: Any = np.int64) -> np.ndarray:
        return np.array(fields.get(name, "").split(), kind)

    leaves, decisions = numbers("leaf_value", np.float64), numbers("decision_type")
    inner, cuts = len(decisions), numbers("threshold", np.float64)
    is_category, left_by_default = (decisions & 1).astype(bool), (decisions & 2).astype(bool)
    missing = (decisions >> 2) & 3  # 0: none is expected, NaN reads as zero; 1: zero; 2: NaN
    rules = np.choose(
        missing,
        [
            np.full(inner, MISSING_ZERO),
            np.where(left_by_default, ZERO_LEFT, ZERO_RIGHT),
            np.where(left_by_default, MISSING_LEFT, MISSING_RIGHT),
        ],
    )
    bounds, words = numbers("cat_boundaries"), numbers("cat_threshold")
    sets: list[frozenset[int] | None] = [None] * (inner + len(leaves))
    for node in np.flatnonzero(is_category):
        chosen = words[bounds[int(cuts[node])] : bounds[int(cuts[node]) + 1]]
        sets[node] = frozenset(
            32 * i + bit for i, word in enumerate(chosen.tolist()) for bit in range(32) if word >> bit & 1
        )
    # LightGBM goes left where value <= threshold, these loops where value < the next number; a category's
    # column is 0 (left) or 1.
    cuts = np.where(is_category, 0.5, np.nextafter(cuts, np.inf))
    below = [
        np.where(children < 0, inner + ~children, children)
        for children in (numbers("left_child"), numbers("right_child"))
    ]
    none = np.full(len(leaves), -1)
    return Trees(
        values=np.concatenate([cuts, leaves]),
        features=np.concatenate([numbers("split_feature"), none]),
        rules=np.concatenate([np.where(is_category, CATEGORY, rules), none]),
        sets=sets,
        left=np.concatenate([below[0], none]),
        right=np.concatenate([below[1], none]),
        sizes=np.array([inner + len(leaves)]),
    )
