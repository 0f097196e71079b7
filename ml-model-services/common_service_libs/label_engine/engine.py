"""The label engine: a policy bound to the thresholds of a bundle, the same for one case or a million."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cel

from common_service_libs.errors import PolicyError
from common_service_libs.feature_contract import FeatureContract
from common_service_libs.label_engine.expressions import variable
from common_service_libs.label_engine.policy import Policy, Rule

SHADOW_PREFIX = "shadow:"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy says; `rules_fired` holds the rules in order, shadow rules as `shadow:<id>`."""

    decision: str
    reason_codes: tuple[str, ...]
    rules_fired: tuple[str, ...]


def require_fit(policy: Policy, contract: FeatureContract) -> None:
    """Raise PolicyError if the policy reads a feature, request value or view that is not in the contract."""
    known = {
        "features": set(contract.feature_names),
        "request": {field.name for field in contract.request} | {e.join_key for e in contract.entities},
        "status": {view.name for view in contract.views},
    }
    names = policy.inputs.names()
    missing = [f"{root}.{name}" for root, there in known.items() for name in names[root] if name not in there]
    missing += [f"degraded_by {name}" for name in sorted(policy.degraded_by - known["status"])]
    if missing:
        raise PolicyError(
            f"policy {policy.name} reads what {contract.name} does not have: {', '.join(missing)}"
        )


class LabelEngine:
    """One policy with one set of thresholds."""

    def __init__(
        self,
        policy: Policy,
        thresholds: Mapping[str, float],
        on_error: Callable[[str], None] = lambda rule: None,
    ) -> None:
        if missing := sorted(set(policy.inputs.thresholds) - set(thresholds)):
            raise PolicyError(
                f"policy {policy.name} needs thresholds that the bundle does not have: {missing}"
            )
        self.policy = policy
        self._on_error = on_error
        self._severity = {decision: level for level, decision in enumerate(policy.decisions)}
        self._rules_without_model = tuple(rule for rule in policy.rules if not rule.needs_model)
        read = {field for rule in policy.rules for field in rule.when.fields}
        self._fields = {
            root: tuple((name, variable(root, name)) for r, name in sorted(read) if r == root)
            for root in ("features", "request", "status")
        }
        self._variables: dict[str, Any] = {}
        self._context = cel.Context(
            {variable("thresholds", n): thresholds[n] for n in policy.inputs.thresholds}
        )

    def decide(
        self,
        *,
        score: float,
        features: Mapping[str, Any],
        request: Mapping[str, Any],
        status: Mapping[str, str],
        degraded: bool,
    ) -> Verdict:
        """Return the verdict on a scored case; null is None or NaN."""
        self._update(score, features, request, status, degraded)
        return self._verdict(self.policy.rules, self.policy.default.decision, self.policy.default.reason_code)

    def decide_without_score(self, *, request: Mapping[str, Any], status: Mapping[str, str]) -> Verdict:
        """Return the verdict of the rules that read neither score nor features, if the policy wants it."""
        fallback = self.policy.rules_only
        if fallback is None:
            raise PolicyError(f"policy {self.policy.name} does not decide without a score")
        self._update(None, {}, request, status, True)
        return self._verdict(self._rules_without_model, fallback.decision, fallback.reason_code)

    def _update(
        self,
        score: float | None,
        features: Mapping[str, Any],
        request: Mapping[str, Any],
        status: Mapping[str, str],
        degraded: bool,
    ) -> None:
        variables: dict[str, Any] = {"score": score, "degraded": degraded}
        for name, flat in self._fields["features"]:
            value = features.get(name)
            variables[flat] = None if isinstance(value, float) and math.isnan(value) else value
        for name, flat in self._fields["request"]:
            variables[flat] = request.get(name)
        for name, flat in self._fields["status"]:
            variables[flat] = status.get(name)
        self._variables = variables
        self._context.update(variables)

    def _verdict(self, rules: tuple[Rule, ...], decision: str, reason_code: str) -> Verdict:
        fired = [rule for rule in rules if self._fires(rule)]
        enforced = [rule for rule in fired if rule.mode == "enforce"]
        for rule in enforced:
            if self._severity[rule.decision] > self._severity[decision]:
                decision = rule.decision
        return Verdict(
            decision=decision,
            reason_codes=tuple(dict.fromkeys(rule.reason_code for rule in enforced)) or (reason_code,),
            rules_fired=tuple(r.id if r.mode == "enforce" else SHADOW_PREFIX + r.id for r in fired),
        )

    def _fires(self, rule: Rule) -> bool:
        try:
            return rule.when.evaluate(self._context) is True
        except (TypeError, ValueError, RuntimeError, KeyError):
            # A comparison with null is an error in CEL. The examples have shown that values make none.
            if not any(self._variables.get(variable(*field), 0) is None for field in rule.when.fields):
                self._on_error(rule.id)
            return False
