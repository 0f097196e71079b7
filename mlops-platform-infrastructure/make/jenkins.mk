# What the Jenkinsfiles and the workflows call, by hand as well.
.PHONY: release-images push-images deploy-staging deploy-production smoke-test rollback notify test-jenkins jenkins-check

REGISTRY ?=
# No default for SERVER itself: other targets take its absence for all servers.
server = $(or $(SERVER),server3)
ENVIRONMENT ?= staging
# A set of servers has a folder of its own; on a machine with one set MLOPS_SERVERS_DIR names it.
servers-of = MLOPS_SERVERS_DIR=$(or $(MLOPS_SERVERS_DIR),$(LOCAL_DIR)/servers$(if $(filter staging,$(1)),-staging))
IMAGE_NAMES := $(shell echo '$(IMAGES)' | tr -s ' ' ',')

release-images: setup ## Build IMAGES=a,b under the tag of the commit that changed them last
	@$(PY) -m server_tools release build --images '$(IMAGE_NAMES)'

push-images: setup ## Push IMAGES=a,b to REGISTRY=host:port (login: REGISTRY_LOGIN_USR, REGISTRY_LOGIN_PSW)
	@$(PY) -m server_tools release push --images '$(IMAGE_NAMES)' --registry '$(REGISTRY)'

deploy-staging: setup ## Put IMAGES=a,b (STACKS=yes: the Compose files too) on SERVER=server3 of staging
	@$(call servers-of,staging) $(PY) -m server_tools deploy --server $(server) --images '$(IMAGE_NAMES)' --registry '$(REGISTRY)' $(if $(STACKS),--with-stacks)

deploy-production: setup ## Put IMAGES=a,b (STACKS=yes: the Compose files too) on SERVER=server3 of production
	@$(call servers-of,production) $(PY) -m server_tools deploy --server $(server) --images '$(IMAGE_NAMES)' --registry '$(REGISTRY)' $(if $(STACKS),--with-stacks)

smoke-test: setup ## Ask SERVER=server3 of ENVIRONMENT=staging|production whether it is ready and decides
	@$(call servers-of,$(ENVIRONMENT)) $(PY) -m server_tools smoke --server $(server)

rollback: setup ## Undo this build's (by hand: the last) deployment on SERVER=server3 of ENVIRONMENT=staging|production
	@$(call servers-of,$(ENVIRONMENT)) $(PY) -m server_tools rollback --server $(server)

notify: setup ## Tell NOTIFICATION_WEBHOOK how a build ended: OUTCOME=unsuccessful|fixed
	@$(PY) -m server_tools notify --outcome $(OUTCOME)

test-jenkins: setup ## The pipelines, jobs, configuration and workflows, run by the harness (needs groovy)
	$(PY) -m pytest -m 'not engine' tests/jenkins tests/repository

jenkins-check: setup ## Run the commands that the pipelines record, once (minutes; groovy and a Docker Engine)
	$(PY) -m pytest -s -m engine tests/jenkins
