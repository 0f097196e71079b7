# The whole platform from one place. Every verb calls the same verb of the six roots, or a command of the embedded stack.
.DEFAULT_GOAL := help
# Without bytecode caches every start compiles its imports again: seconds for Airflow, Feast and MLflow.
unexport PYTHONDONTWRITEBYTECODE
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

ROOTS := feature-store-management ml-model-development ml-model-services mlops-orchestration-pipelines \
	mlops-platform-infrastructure ml-reporting-and-monitoring-logic
export LOCAL_DIR ?= $(CURDIR)/.local
export PYTHON ?= python3
export IMAGES
export SERVERS
# full: 5,000 customers, 183 days, 1.75 million transactions; small: a tenth of the customers.
SCALE ?= full
ifeq ($(filter $(SCALE),full small),)
$(error SCALE is "$(SCALE)": full or small)
endif
INSTANCE ?= default
STATE = stack$(if $(filter-out default,$(INSTANCE)),-$(INSTANCE))

PLATFORM := mlops-platform-infrastructure
PLATFORM_PY := $(LOCAL_DIR)/venvs/$(PLATFORM)/bin/python
STACK := cd $(PLATFORM) && $(PLATFORM_PY) -m local_stack
WHEN_SET_UP := test -x $(PLATFORM_PY) || { echo "nothing is set up yet: make setup, or make demo"; exit 0; }
TEST_STACK := $(STACK) --instance test
ENGINE := cd $(PLATFORM) && $(PLATFORM_PY) -m local_engine
# Two roots at a time, each root's output in one piece where make can.
JOBS ?= 2
# Its tests kill servers of the stack that all share, so it is tested alone; the longest of the others come first.
KILLS_SERVERS := ml-model-services
LEAVE_SERVERS_ALONE := feature-store-management ml-model-development mlops-orchestration-pipelines \
	mlops-platform-infrastructure ml-reporting-and-monitoring-logic
IN_EVERY_ROOT = $(MAKE) --no-print-directory -j$(JOBS) $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: help setup lock format check test test-unit test-integration test-e2e demo parity bench-features bench-models bench-serving \
	reproduce-handbook fault-test test-images new-service up-local down status logs reset clean filled-test-stack

help: ## List what can be done
	@echo "make <target>    (SCALE=small|full, INSTANCE=name, PYTHON=python3.12)"
	@grep -hE '^[a-zA-Z0-9_-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

setup: ## Create the environments of all roots (done by demo and test too)
	@for root in $(ROOTS); do $(MAKE) --no-print-directory -C $$root setup; done

demo: setup ## Raw events to served, explained, logged decisions, on this machine (SCALE=small for a quick look)
	@cd $(PLATFORM) && $(PLATFORM_PY) -m local_stack.demo --instance $(INSTANCE) --scale $(SCALE)

parity: setup ## Replay a day through broker, stream processor, Redis and API; recompute each vector; compare
	@if [ ! -f $(LOCAL_DIR)/$(STATE)/reports/demo.json ]; then $(MAKE) --no-print-directory demo; fi
	@cd $(PLATFORM) && $(PLATFORM_PY) -m local_stack.parity --instance $(INSTANCE)

bench-features: setup ## The feature platform's speed, each figure beside a peer of the same run (some minutes)
	@$(STACK) --instance bench up
	@trap '($(STACK) --instance bench down)' EXIT; \
	($(STACK) --instance bench exec -- $(MAKE) --no-print-directory -C ../ml-model-services bench-online-read); \
	$(STACK) --instance bench exec -- $(MAKE) --no-print-directory -C ../feature-store-management bench

bench-models: setup ## One-row and batch speed of the release bundles beside MLflow, scikit-learn and the native libraries
	@$(MAKE) --no-print-directory -C ml-model-development bench-models

bench-serving: setup ## One decision end to end beside its floor, and throughput beside the usual way, MLflow, BentoML, MLServer, Ray Serve
	@$(STACK) --instance bench up
	@trap '($(STACK) --instance bench down)' EXIT; \
	($(STACK) --instance bench exec -- $(MAKE) --no-print-directory -C ../ml-model-services bench-serving)

reproduce-handbook: setup ## Our fraud models beside the Fraud Detection Handbook's published figures (no stack needed; some minutes)
	@cd feature-store-management && $(LOCAL_DIR)/venvs/feature-store-management/bin/python \
		-m data_transformation_pipelines.python_scripts_feast.simulate_transactions --out $(LOCAL_DIR)/handbook/transactions
	@$(MAKE) --no-print-directory -C ml-model-development reproduce-handbook \
		LANDING=$(LOCAL_DIR)/handbook/transactions REPORTS=$(LOCAL_DIR)/reports

fault-test: setup ## The services under kills, silent stores, full disks, overload and hostile input, full counts (hours; ONLY=name for one)
	@$(MAKE) --no-print-directory filled-test-stack
	@trap '($(TEST_STACK) down)' EXIT; \
	($(TEST_STACK) exec -- $(MAKE) --no-print-directory -C ../ml-model-services fault-test ONLY=$(ONLY))

new-service: setup ## A decision service that passes its own tests, to begin from (NAME=credit_limit_api)
	@$(MAKE) --no-print-directory -C ml-model-services new-service NAME=$(NAME)

up-local: setup ## Start the embedded stack and the APIs
	@$(STACK) --instance $(INSTANCE) up --apis

down: ## Stop the embedded stack; data is kept
	@$(WHEN_SET_UP); $(STACK) --instance $(INSTANCE) down

status: ## What runs, where, and whether it is healthy
	@$(WHEN_SET_UP); $(STACK) --instance $(INSTANCE) status

logs: ## Last lines of every service's log (SERVICE=name for one)
	@$(WHEN_SET_UP); $(STACK) --instance $(INSTANCE) logs $(SERVICE)

reset: ## Stop the embedded stack and delete its data (asks first)
	@$(WHEN_SET_UP); $(STACK) --instance $(INSTANCE) reset

test: setup ## Every test: units, the small demo against an oracle, integration on the real stack
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-e2e
	@$(MAKE) --no-print-directory test-integration

test-unit: setup ## Unit and contract tests of every root, without network
	@$(IN_EVERY_ROOT) $(ROOTS:%=test/%)

test-e2e: setup ## The small demo, end to end, twice, checked against an oracle computed apart
	@$(MAKE) --no-print-directory -C $(PLATFORM) test-e2e

test-integration: setup ## Tests of every root against the stack that the small demo has filled
	@$(MAKE) --no-print-directory filled-test-stack
	@trap '($(TEST_STACK) down)' EXIT; \
	($(TEST_STACK) exec -- $(IN_EVERY_ROOT) -C .. $(LEAVE_SERVERS_ALONE:%=integration/%)); \
	($(TEST_STACK) exec -- $(MAKE) --no-print-directory -C ../$(KILLS_SERVERS) test-integration)

test-images: setup ## Build the services' images and run them on a Docker Engine (IMAGES=name for one; root starts an engine where none runs)
	@$(MAKE) --no-print-directory filled-test-stack
	@trap '($(ENGINE) down); ($(TEST_STACK) down)' EXIT; \
	($(ENGINE) exec -- $(PLATFORM_PY) -m local_stack --instance test exec -- \
		$(MAKE) --no-print-directory -C ../ml-model-services test-images)

# On servers: the same verbs in the platform's root.
SERVER_VERBS := secrets up-all down-all images render-config backup restore drill policy test-compose \
	check-config terraform-check kubernetes-check test-jenkins jenkins-check test-provisioning test-backup test-mlflow \
	$(foreach verb,up down ps logs config,$(verb)-server1 $(verb)-server2 $(verb)-server3)
.PHONY: $(SERVER_VERBS)
$(SERVER_VERBS):
	@$(MAKE) --no-print-directory -C $(PLATFORM) $@

filled-test-stack:
	@if [ -f $(LOCAL_DIR)/stack-test/reports/demo.json ]; then $(TEST_STACK) up; \
	else cd $(PLATFORM) && $(PLATFORM_PY) -m local_stack.demo --instance test --scale small; fi

check: setup ## Lint, formatting and types in every root; modifies nothing
	@$(IN_EVERY_ROOT) $(ROOTS:%=check/%)

test/%:
	@$(MAKE) --no-print-directory -C $* test

integration/%:
	@$(MAKE) --no-print-directory -C $* test-integration

check/%:
	@$(MAKE) --no-print-directory -C $* check

format: setup ## Format every root
	@for root in $(ROOTS); do $(MAKE) --no-print-directory -C $$root format; done

lock: ## Resolve the dependencies of every root anew
	@for root in $(ROOTS); do $(MAKE) --no-print-directory -C $$root lock; done

clean: down ## Stop everything and delete .local (environments, data, reports)
	rm -rf $(LOCAL_DIR)
