"""The usual way: FastAPI, the Feast SDK, pandas, scikit-learn's interface, a metric, a line in a file."""

import json
import os
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from features import Features, decide, record
from prometheus_client import Counter, Histogram
from pydantic import BaseModel, Field
from xgboost import XGBClassifier

features = Features()
model = XGBClassifier(n_jobs=1)
model.load_model(os.environ["MODEL_FILE"])
thresholds = json.loads(Path(os.environ["THRESHOLDS_FILE"]).read_text())
decisions = Counter("decisions", "Decisions", ["decision"])
seconds = Histogram("decision_seconds", "Seconds a decision took")
app = FastAPI()


class Transaction(BaseModel):
    customer_id: int = Field(ge=0)
    terminal_id: int = Field(ge=0)
    tx_amount: float = Field(ge=0)


with Path(os.environ["RECORD_FILE"]).open("a", encoding="utf-8") as stream:

    @app.post("/predict")
    def predict(transaction: Transaction):
        with seconds.time():
            frame = features.frame(transaction.customer_id, transaction.terminal_id, transaction.tx_amount)
            score = float(model.predict_proba(frame)[0, 1])
            decision = decide(score, thresholds, transaction.tx_amount)
            record(stream, transaction.model_dump(), frame, score, decision)
        decisions.labels(decision).inc()
        return {"decision": decision, "score": score}

    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
