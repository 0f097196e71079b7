# Configuration templates and the scripts that make a machine a server.
.PHONY: render-config check-config check-provisioning test-provisioning

render-config: setup ## Render the servers' configuration files from platform_config_templates
	@$(PY) -m server_tools render

check-config: setup ## Say whether the rendered files are what templates and settings give; changes nothing
	@$(PY) -m server_tools render --check

check-provisioning: setup ## Lint the provisioning scripts
	@cd server_provisioning_scripts && $(VENV)/bin/shellcheck --check-sourced --external-sources --severity style setup_server*.sh

test-provisioning: setup ## Run each server's script twice in a Debian root, and try its firewall (needs a Docker Engine)
	@$(PY) -m local_engine exec -- $(PY) -m pytest -m engine --durations 5 tests/provisioning
