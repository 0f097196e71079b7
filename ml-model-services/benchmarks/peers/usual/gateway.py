"""Features by the Feast SDK in front of a model server: `mlflow models serve` wants them in the request."""

import json
import os
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI
from features import Features, decide, record
from pydantic import BaseModel, Field

features = Features()
client = httpx.Client(timeout=30)
thresholds = json.loads(Path(os.environ["THRESHOLDS_FILE"]).read_text())
app = FastAPI()


class Transaction(BaseModel):
    customer_id: int = Field(ge=0)
    terminal_id: int = Field(ge=0)
    tx_amount: float = Field(ge=0)


with Path(os.environ["RECORD_FILE"]).open("a", encoding="utf-8") as stream:

    @app.post("/predict")
    def predict(transaction: Transaction):
        frame = features.frame(transaction.customer_id, transaction.terminal_id, transaction.tx_amount)
        answer = client.post(
            os.environ["MODEL_SERVER"] + "/invocations",
            json={"dataframe_split": frame.to_dict(orient="split")},
        )
        score = float(answer.raise_for_status().json()["predictions"][0])
        decision = decide(score, thresholds, transaction.tx_amount)
        record(stream, transaction.model_dump(), frame, score, decision)
        return {"decision": decision, "score": score}

    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
