"""What is computed at request time: full days plus today so far plus the transaction itself."""

from pathlib import Path
from typing import Any

from feast import Field
from feast.on_demand_feature_view import OnDemandFeatureView

import on_demand_expressions
from contract_definitions import OWNER, TYPES, computed_features, on_demand_sources
from data_sources import transaction_request
from feature_contract import FeatureContract, load_contract
from feature_views.customer_daily import customer_daily
from feature_views.customer_today import customer_today
from feature_views.terminal_daily import terminal_daily
from feature_views.terminal_today import terminal_today

NAME = "transaction_on_demand"


def on_demand_view(contract: FeatureContract) -> OnDemandFeatureView:
    """Return the view whose transformation is the text of the interpreter with the contract's expressions.

    Feast runs the text that stands in the registry, so a client needs none of this project's modules.
    """
    features = computed_features(contract)
    source = on_demand_expressions.registered_source(
        NAME,
        {feature.name: feature.expression for feature in features},
        Path(on_demand_expressions.__file__).read_text(encoding="utf-8"),
    )
    namespace: dict[str, Any] = {"__name__": NAME}
    exec(compile(source, f"<{NAME}>", "exec"), namespace)  # noqa: S102 (our own text, as Feast will run it)
    views = [customer_daily, customer_today, terminal_daily, terminal_today]
    return OnDemandFeatureView(
        name=NAME,
        sources=[*on_demand_sources(contract, views), transaction_request],
        schema=[Field(name=feature.name, dtype=TYPES[feature.type]) for feature in features],
        udf=namespace[NAME],
        udf_string=source,
        mode="pandas",
        description="Windows up to and including the transaction, and when it happened.",
        owner=OWNER,
    )


transaction_on_demand = on_demand_view(load_contract("fraud_detection_v1"))
