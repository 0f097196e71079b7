# all: every service that can run here, on data and models made by the DAGs; core: what a transaction passes.
SERVERS := $(or $(SERVERS),all)
ifeq ($(filter $(SERVERS),all core),)
$(error SERVERS is "$(SERVERS)": all or core)
endif
CORE_IMAGES := feast-cli fraud-detection-api

.PHONY: test-compose
test-compose: setup ## The three servers on a Docker Engine, from a transaction to its decision; each service restarted and killed (SERVERS=core: a part)
	$(PY) -m local_engine exec -- $(PY) -m server_tools images build $(if $(filter core,$(SERVERS)),$(CORE_IMAGES))
	@trap '$(PY) -m local_engine down' EXIT; \
	SERVERS=$(SERVERS) $(PY) -m local_engine exec -- \
		$(PY) -m pytest -m engine tests/servers $(if $(filter all,$(SERVERS)),tests/compose)
