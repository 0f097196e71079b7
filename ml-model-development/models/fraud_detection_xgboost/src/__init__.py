"""The fraud model: P(a card transaction is fraudulent), XGBoost on `fraud_detection_v1`."""
