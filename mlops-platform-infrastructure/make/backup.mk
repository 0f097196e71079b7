.PHONY: backup restore drill test-backup
backup: setup ## Back up the servers now (SERVER=1|2|3, default all)
	@$(PY) -m server_tools backup --server $(or $(SERVER),all)

restore: setup ## Restore a part (PART=postgres|redis|objects|jenkins|spool|secrets, ARGS="--to-time ... --replace")
	@$(if $(PART),$(PY) -m server_tools restore $(PART) $(ARGS),echo 'which part? make restore PART=postgres|redis|objects|jenkins|spool|secrets'; exit 2)

# An engine that was started for it stays: servers may run there by now (python -m local_engine down).
drill: setup ## Load, back up, destroy, restore, compare, on throw-away volumes (SCALE=demo|small)
	@$(PY) -m local_engine stand-ins POSTGRES_IMAGE REDIS_IMAGE SEAWEEDFS_IMAGE
	@$(PY) -m local_engine exec -- $(PY) -m server_tools images build backup
	@$(PY) -m local_engine exec -- $(PY) -m server_tools drill --scale $(if $(filter small,$(SCALE)),small,demo)

test-backup: setup ## The drill, upgrades and migrations on a Docker Engine (services: with a stack's settings loaded)
	@$(PY) -m local_engine exec -- $(PY) -m pytest --durations 5 -s -m engine tests/backup
