.PHONY: test-mlflow test-mlflow-image
test-mlflow: setup ## MLflow's published weaknesses against a running server of ours (processes on loopback; no stack, no engine)
	$(PY) -m pytest --durations 5 -m integration tests/mlflow_security/test_running_server.py

test-mlflow-image: setup ## The same against the image mlops/mlflow-server:dev on a Docker Engine
	$(PY) -m local_engine exec -- $(PY) -m pytest -m engine tests/mlflow_security
