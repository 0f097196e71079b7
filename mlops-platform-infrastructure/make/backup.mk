.PHONY: backup restore drill test-backup
backup: setup ## Back up the servers now (SERVER=1|2|3, default all)
	@$(PY) -m server_tools backup --server $(or $(SERVER),all)

restore: setup ## Restore a part (PART=postgres|redis|objects|jenkins|spool|secrets, ARGS="--to-time ... --replace")
	@$(if $(PART),$(PY) -m server_tools restore $(PART) $(ARGS),echo 'which part? make restore PART=postgres|redis|objects|jenkins|spool|secrets'; exit 2)

drill: setup ## Load, back up, destroy, restore, compare, on throw-away volumes (SCALE=demo|small)
	@$(PY) -m server_tools drill --scale $(if $(filter small,$(SCALE)),small,demo)

test-backup: setup ## Backup, restore and damage on a Docker Engine
	$(PY) -m pytest --durations 5 -m engine tests/backup
