.PHONY: test-compose
test-compose: setup ## The three servers on a Docker Engine, from a transaction to its decision; each service restarted and killed
	$(PY) -m local_engine exec -- $(PY) -m server_tools images build
	@trap '$(PY) -m local_engine down' EXIT; \
	$(PY) -m local_engine exec -- $(PY) -m pytest -m engine tests/servers tests/images
