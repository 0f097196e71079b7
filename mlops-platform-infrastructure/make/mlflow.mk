.PHONY: test-mlflow
test-mlflow: setup ## MLflow's published weaknesses against a running server of ours (processes on loopback; no stack, no engine)
	$(PY) -m pytest --durations 5 -m integration tests/mlflow_security/test_running_server.py
