# Terraform: formatted, parsed, held to a policy, scanned, and planned as far as that goes without a provider.
.PHONY: terraform-check terraform-test terraform-plan terraform-fmt scan kubernetes-scan lock-checkov

TF_ENVIRONMENT ?= dev
REPOSITORY_URL ?= https://git.example.org/mlops-platform.git
CHECKOV := $(LOCAL_DIR)/venvs/checkov/bin/checkov
# Neither a credentials file nor a question to anybody about newer versions.
OFFLINE := TF_CLI_CONFIG_FILE=/dev/null CHECKPOINT_DISABLE=1 TF_IN_AUTOMATION=1 TF_DATA_DIR=$(LOCAL_DIR)/terraform/offline

$(LOCAL_DIR)/venvs/checkov/.locked: terraform/checkov.txt | $(UV)
	@echo "==> environment of checkov"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(@D)
	@$(UV) pip sync --quiet --require-hashes --python $(@D)/bin/python $<
	@touch $@

lock-checkov: | $(UV) ## Resolve the scanner's lock (names, versions and hashes only)
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header terraform/checkov.in -o terraform/checkov.txt

terraform-test: setup ## Format, parse, policy, modules' own tests, offline plans
	@$(PY) -m pytest -s tests/terraform

terraform-check: terraform-test scan ## Everything of terraform-test, and the scanner with 0 findings

scan: $(LOCAL_DIR)/venvs/checkov/.locked ## Scan the Terraform files (checkov, offline)
	@$(CHECKOV) --config-file terraform/checkov.yaml

kubernetes-scan: $(LOCAL_DIR)/venvs/checkov/.locked kubectl ## Scan what Kustomize builds for production (checkov, offline)
	@built=$$(mktemp -d) && trap 'rm -rf "$$built"' EXIT && \
	for overlay in kubernetes_deployments/*/overlays/prod; do \
		$(KUBECTL) kustomize $$overlay >"$$built/$$(basename $$(dirname $$(dirname $$overlay))).yaml" || exit 1; done && \
	$(CHECKOV) --config-file kubernetes_deployments/checkov.yaml --directory "$$built"

terraform-fmt: ## Format the Terraform files
	@terraform fmt -recursive terraform

terraform-plan: ## Plan what needs no provider: addresses, firewalls, first starts (TF_ENVIRONMENT=prod)
	@command -v terraform >/dev/null || { echo "terraform is not on the PATH"; exit 1; }
	@cd terraform/offline_plan && $(OFFLINE) terraform init -backend=false -input=false >/dev/null && \
	$(OFFLINE) terraform plan -input=false -state=$(LOCAL_DIR)/terraform/none.tfstate \
		-var-file=../environments/$(TF_ENVIRONMENT)/plan.auto.tfvars -var environment=$(TF_ENVIRONMENT) \
		-var commit=$$(git rev-parse HEAD) -var repository_url=$(REPOSITORY_URL)
