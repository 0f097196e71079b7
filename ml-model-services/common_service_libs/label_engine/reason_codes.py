"""The one table of reason codes: what a code means, and which features stand behind it in an explanation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import msgspec
import yaml

from common_service_libs.errors import PolicyError

TABLE = Path(__file__).with_name("reason_codes.yaml")


class ReasonCode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stable code, a sentence for whoever reads the decision, and the features that explain by it."""

    code: str
    meaning: str
    features: tuple[str, ...] = ()


def parse_table(text: str) -> Mapping[str, ReasonCode]:
    """Return the table keyed by code; raises PolicyError for a code or a feature that stands in it twice."""
    try:
        codes = msgspec.convert(yaml.safe_load(text), tuple[ReasonCode, ...])
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise PolicyError(f"the table of reason codes: {error}") from None
    names = [code.code for code in codes]
    features = [feature for code in codes for feature in code.features]
    for kind, entries in (("code", names), ("feature", features)):
        if twice := sorted({entry for entry in entries if entries.count(entry) > 1}):
            raise PolicyError(f"the table of reason codes: {kind} {twice[0]} stands in it twice")
    if odd := [name for name in names if not name.replace("_", "").isalnum() or not name.isupper()]:
        raise PolicyError(f"the table of reason codes: {odd[0]} is not upper case")
    return {code.code: code for code in codes}


@functools.cache
def reason_codes() -> Mapping[str, ReasonCode]:
    """Return the table, read once."""
    return parse_table(TABLE.read_text(encoding="utf-8"))


@functools.cache
def reason_of_feature() -> Mapping[str, str]:
    """Return the reason code behind each feature that has one."""
    return {feature: code.code for code in reason_codes().values() for feature in code.features}
