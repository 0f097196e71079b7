"""The model alone behind Ray Serve; features come in the request."""

import os
import time

import numpy as np
import ray
from ray import serve
from xgboost import XGBClassifier


@serve.deployment(num_replicas=1, max_ongoing_requests=100)
class FraudModel:
    def __init__(self) -> None:
        self.model = XGBClassifier(n_jobs=1)
        self.model.load_model(os.environ["MODEL_FILE"])

    async def __call__(self, request):
        rows = np.array((await request.json())["rows"], dtype=np.float32)
        return {"scores": self.model.predict_proba(rows)[:, 1].tolist()}


ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
serve.run(FraudModel.bind(), route_prefix="/predict")
while True:
    time.sleep(3600)
