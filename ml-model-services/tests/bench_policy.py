"""How long the rules of a case take: `python tests/bench_policy.py`, with the root on PYTHONPATH.."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import cel

from common_service_libs.batch_door import SERVICES
from common_service_libs.label_engine.engine import LabelEngine
from common_service_libs.label_engine.policy import find_policy, load_policy

ROUNDS, CALLS = 31, 500


def microseconds(call: Callable[[], object]) -> float:
    """Return the mean time of a call in the best round: others may use the machine too."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - started) / CALLS * 1e6)
    return round(min(times), 2)


def main() -> None:
    """Print what the rules of the fraud policy take, beside a context built anew for every case."""
    policy = load_policy(find_policy(SERVICES / "fraud_detection_api" / "policies"))
    engine = LabelEngine(policy, {"review": 0.35, "decline": 0.8})
    features = dict.fromkeys(policy.inputs.features, 3.0) | {"terminal_fraud_risk_7d": 0.0}
    request = {"customer_id": 1, "terminal_id": 2, "tx_amount": 20.0, "tx_timestamp": 1.0}
    inputs = {"lists": {"blocked": False, "trusted_customers": False}, "velocity": {}}

    def decide(**changes: float | None) -> object:
        return engine.decide(
            score=0.1, features=features | changes, request=request, status={}, degraded=False,
            policy_inputs=inputs,
        )  # fmt: skip

    decide()
    variables = dict(engine._variables)
    print(json.dumps({
        "rules": len(policy.rules),
        "decide_us": microseconds(decide),
        "decide_with_a_null_us": microseconds(lambda: decide(terminal_fraud_risk_7d=None)),
        "context_alone_us": microseconds(lambda: cel.Context(variables)),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
