"""The label engine: a policy bound to the thresholds of a bundle, the same for one case or a million."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cel

from common_service_libs.errors import PolicyError
from common_service_libs.feature_contract import NUMERIC_TYPES, FeatureContract
from common_service_libs.label_engine.expressions import BARE_FIELDS, CEL_ERRORS, all_of, variable
from common_service_libs.label_engine.plain_rules import plain_rules
from common_service_libs.label_engine.policy import CHEAPEST, Policy, Rule
from common_service_libs.label_engine.types import Type, said

SHADOW_PREFIX = "shadow:"
NO_INPUTS: Mapping[str, Mapping[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy says; `rules_fired` holds the rules in order, shadow rules as `shadow:<id>`."""

    decision: str
    reason_codes: tuple[str, ...]
    rules_fired: tuple[str, ...]


def require_fit(policy: Policy, contract: FeatureContract) -> None:
    """Raise PolicyError if the policy reads what is not in the contract, or as another type."""
    features = {feature.name: _type_of(feature.type) for feature in contract.features}
    keys: dict[str, Type] = {
        entity.join_key: "string" if entity.type == "string" else "int" for entity in contract.entities
    }
    request = {field.name: _type_of(field.type) for field in contract.request} | keys
    views = {view.name for view in contract.views}
    missing = [f"status.{name}" for name in policy.inputs.status if name not in views]
    missing += [f"degraded_by {name}" for name in sorted(policy.degraded_by - views)]
    for name, limit in policy.velocity.items():
        if limit.entity not in keys:
            missing.append(f"velocity.{name} of {limit.entity}")
        if limit.sum is not None and request.get(limit.sum) != "double":
            missing.append(f"velocity.{name} of the number {limit.sum}")
    mistyped = []
    for root, declared, there in (
        ("features", policy.inputs.features, features),
        ("request", policy.inputs.request, request),
    ):
        for name, kind in declared.items():
            if name not in there:
                missing.append(f"{root}.{name}")
            elif there[name] != kind:
                mistyped.append(f"{root}.{name} is {said(there[name])} there, not {said(kind)}")
    if missing:
        raise PolicyError(
            f"policy {policy.name} reads what {contract.name} does not have: {', '.join(missing)}"
        )
    if mistyped:
        raise PolicyError(f"policy {policy.name} and {contract.name}: {', '.join(mistyped)}")


def _type_of(contract_type: str) -> Type:
    """Return what a value of the contract is in a rule: every number is a double."""
    return "double" if contract_type in NUMERIC_TYPES else "string"


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
        self.thresholds = thresholds
        self._on_error = on_error
        self._severity = {decision: level for level, decision in enumerate(policy.decisions)}
        self._rules = policy.rules
        self._together = all_of([rule.when for rule in policy.rules]) if policy.rules else None
        self._plain = plain_rules(
            [rule.when for rule in policy.rules], dict(BARE_FIELDS) | policy.inputs.types(), thresholds
        )
        self._nothing_fired = Verdict(policy.default.decision, (policy.default.reason_code,), ())
        self._rules_without_model = tuple(rule for rule in policy.rules if not rule.needs_model)
        read = {field for rule in policy.rules for field in rule.when.fields}
        self._costs = policy.costs if (CHEAPEST, "") in read else None
        if self._costs is not None:
            read |= self._costs.fields
        self._fields = {
            root: tuple((name, variable(root, name)) for r, name in sorted(read) if r == root)
            for root in ("features", "request", "status", "lists", "velocity")
        }
        self._more = bool(self._fields["lists"] or self._fields["velocity"])
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
        policy_inputs: Mapping[str, Mapping[str, Any]] = NO_INPUTS,
    ) -> Verdict:
        """Return the verdict on a scored case; null is None or NaN.

        `policy_inputs` is what the rules read beside features and request: `lists` by name, true or false,
        and `velocity` by name, null where it is not known.
        """
        default = self.policy.default
        if self._plain is not None:
            fires = self._plain(score, degraded, features, request, status, policy_inputs)
            if fires is not None:
                return self._verdict_of(fires)
        self._update(score, features, request, status, degraded, policy_inputs)
        if self._together is not None and None not in self._variables.values():
            try:
                fires = self._together.execute(self._context)
            except CEL_ERRORS:
                pass  # which rule it is shows one by one
            else:
                return self._verdict_of(fires)
        return self._verdict(self._rules, default.decision, default.reason_code)

    def decide_without_score(
        self,
        *,
        request: Mapping[str, Any],
        status: Mapping[str, str],
        policy_inputs: Mapping[str, Mapping[str, Any]] = NO_INPUTS,
    ) -> Verdict:
        """Return the verdict of the rules that read neither score nor features, if the policy wants it."""
        fallback = self.policy.rules_only
        if fallback is None:
            raise PolicyError(f"policy {self.policy.name} does not decide without a score")
        self._update(None, {}, request, status, True, policy_inputs)
        return self._verdict(self._rules_without_model, fallback.decision, fallback.reason_code)

    def costs(
        self, *, features: Mapping[str, Any], request: Mapping[str, Any]
    ) -> dict[str, tuple[float, float]] | None:
        """Return what each decision costs if the case is positive and if not, None where nothing says so."""
        costs = self.policy.costs
        if costs is None:
            return None
        known = {"features": features, "request": request, "thresholds": self.thresholds}
        values = {variable(root, name): known[root].get(name) for root, name in costs.fields}
        found = costs.of(cel.Context(values))
        if found is None:
            return None
        return dict(zip(costs.decisions, zip(*found, strict=True), strict=True))

    def _update(
        self,
        score: float | None,
        features: Mapping[str, Any],
        request: Mapping[str, Any],
        status: Mapping[str, str],
        degraded: bool,
        policy_inputs: Mapping[str, Mapping[str, Any]],
    ) -> None:
        variables: dict[str, Any] = {"score": score, "degraded": degraded}
        fields = self._fields
        for name, flat in fields["features"]:
            value = features.get(name)
            variables[flat] = None if isinstance(value, float) and math.isnan(value) else value
        for name, flat in fields["request"]:
            value = request.get(name)
            variables[flat] = None if isinstance(value, float) and math.isnan(value) else value
        for name, flat in fields["status"]:
            variables[flat] = status.get(name)
        if self._more:
            lists, velocity = policy_inputs.get("lists", {}), policy_inputs.get("velocity", {})
            for name, flat in fields["lists"]:
                variables[flat] = lists.get(name)
            for name, flat in fields["velocity"]:
                variables[flat] = velocity.get(name)
        if self._costs is not None:
            self._context.update(variables)
            variables[CHEAPEST] = cheapest = self._costs.cheapest(score, self._context)
            self._context.update({CHEAPEST: cheapest})
        else:
            self._context.update(variables)
        self._variables = variables

    def _verdict_of(self, fires: Sequence[bool]) -> Verdict:
        if True not in fires:
            return self._nothing_fired
        fired = [rule for rule, fire in zip(self._rules, fires, strict=True) if fire]
        return self._conclude(fired, self.policy.default.decision, self.policy.default.reason_code)

    def _verdict(self, rules: tuple[Rule, ...], decision: str, reason_code: str) -> Verdict:
        return self._conclude([rule for rule in rules if self._fires(rule)], decision, reason_code)

    def _conclude(self, fired: list[Rule], decision: str, reason_code: str) -> Verdict:
        rules_fired = tuple([r.id if r.mode == "enforce" else SHADOW_PREFIX + r.id for r in fired])
        enforced = [rule for rule in fired if rule.mode == "enforce"]
        for rule in enforced:
            if rule.final:
                return Verdict(rule.decision, (rule.reason_code,), rules_fired)
        for rule in enforced:
            if self._severity[rule.decision] > self._severity[decision]:
                decision = rule.decision
        reasons = tuple(dict.fromkeys([rule.reason_code for rule in enforced])) or (reason_code,)
        return Verdict(decision, reasons, rules_fired)

    def _fires(self, rule: Rule) -> bool:
        try:
            return rule.when.evaluate(self._context) is True
        except CEL_ERRORS:
            # A comparison with null is an error in CEL. The examples have shown that values make none.
            if not any(self._variables.get(variable(*field), 0) is None for field in rule.when.fields):
                self._on_error(rule.id)
            return False
