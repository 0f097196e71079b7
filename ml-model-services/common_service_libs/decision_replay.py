"""A recorded decision, taken again: the same vector, bundle and policy give the same score and verdict.

The reasons of a score follow the rule that every root gives them by: contributions (log-odds) are summed by
the codes of the bundle's `reason_codes.json` in the order of feature names; a reason is one of the three
largest positive sums that hold at least 5 % of all that raised the score, ties in the order of codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from common_service_libs.decision_record import DecisionRecord
from common_service_libs.errors import BundleError
from common_service_libs.label_engine.engine import LabelEngine, Verdict
from common_service_libs.release_bundle import Bundle, as_values

REASON_CODES = "reason_codes.json"
REASONS = 3
MINIMUM_SHARE = 0.05


class ReasonCode(msgspec.Struct, frozen=True):
    """A stable code, and what it says where its features raise the score."""

    code: str
    text: str


def read_reason_codes(folder: Path, bundle: Bundle) -> Mapping[str, ReasonCode] | None:
    """Return feature -> reason code of a bundle, None where it has no such file; raises BundleError."""
    if REASON_CODES not in bundle.manifest.files:
        return None
    try:
        content = (folder / REASON_CODES).read_bytes()
        if hashlib.sha256(content).hexdigest() != bundle.manifest.files[REASON_CODES]:
            raise BundleError(f"{REASON_CODES} does not have the hash of the manifest")
        codes = msgspec.json.decode(content, type=dict[str, ReasonCode])
    except OSError as error:
        raise BundleError(f"{REASON_CODES} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise BundleError(f"{REASON_CODES}: {error}") from None
    if absent := sorted(set(bundle.feature_names) - set(codes)):
        raise BundleError(f"features without a reason code: {absent}")
    return codes


def reasons(
    names: Sequence[str], contributions: Sequence[float], codes: Mapping[str, ReasonCode]
) -> list[dict[str, Any]]:
    """Return the reasons of one score, strongest first: code, text and contribution in log-odds.

    >>> codes = {"a": ReasonCode("A", "a"), "b": ReasonCode("B", "b"), "c": ReasonCode("A", "a")}
    >>> [(r["code"], r["contribution"]) for r in reasons(["a", "b", "c"], [0.5, 1.0, 0.5], codes)]
    [('A', 1.0), ('B', 1.0)]
    """
    sums: dict[str, float] = dict.fromkeys(sorted({codes[name].code for name in names}), 0.0)
    texts: dict[str, str] = {}
    for name, part in sorted(zip(names, contributions, strict=True)):
        code = codes[name]
        sums[code.code] += part
        texts[code.code] = code.text  # one text a code: that of the last of its features by name
    raised = float(np.maximum(np.array(list(sums.values())), 0.0).sum())
    strongest = sorted(sums, key=lambda code: -sums[code])[:REASONS]  # stable: ties stay in order of codes
    return [
        {"code": code, "text": texts[code], "contribution": sums[code]}
        for code in strongest
        if sums[code] > 0 and sums[code] / raised >= MINIMUM_SHARE
    ]


def replay_verdict(record: DecisionRecord, bundle: Bundle, engine: LabelEngine) -> Verdict:
    """Return what the policy says of what was recorded."""
    request = {**record.entity_ids, **request_values(record, bundle)}
    status = {view: str(state["status"]) for view, state in record.feature_status.items()}
    if record.score is None:
        return engine.decide_without_score(request=request, status=status, policy_inputs=record.policy_inputs)
    names = bundle.feature_names
    return engine.decide(
        score=record.score,
        features=dict(zip(names, as_values(names, record.features), strict=True)),
        request=request,
        status=status,
        degraded=record.degraded,
        policy_inputs=record.policy_inputs,
    )


def agrees(record: DecisionRecord, verdict: Verdict) -> bool:
    """Return whether a verdict is the recorded one."""
    recorded = (record.decision, tuple(record.reason_codes), tuple(record.rules_fired))
    return recorded == (verdict.decision, verdict.reason_codes, verdict.rules_fired)


def request_values(record: DecisionRecord, bundle: Bundle) -> dict[str, float]:
    """Return what rules read of a recorded request; a time is recorded as text, under `_datetime`."""
    values: dict[str, float] = {}
    for field in bundle.contract.request:
        if (value := record.request.get(field.name)) is not None:
            values[field.name] = float(value)
        elif (text := record.request.get(field.name.removesuffix("_timestamp") + "_datetime")) is not None:
            values[field.name] = datetime.fromisoformat(str(text)).timestamp()
    return values
