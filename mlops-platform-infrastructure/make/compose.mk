# The servers' stacks: docs/compose.md.
SERVER_TOOLS = $(PY) -m server_tools
.PHONY: secrets policy up-all down-all $(foreach verb,up down ps logs config,$(verb)-server1 $(verb)-server2 $(verb)-server3)

secrets: setup ## Generate the secrets and settings of the servers that are missing (mode 0600; never over what stands)
	@$(SERVER_TOOLS) secrets

policy: setup ## Check every Compose stack against the controls
	@$(SERVER_TOOLS) policy

up-all: setup ## All three servers on this host (WITHOUT="grafana kibana" leaves services out)
	@$(SERVER_TOOLS) up --server all

down-all: setup ## Stop all three servers; data is kept
	@$(SERVER_TOOLS) down --server all

# up-server1: start and wait until healthy; down-, ps-, logs- (SERVICE=name for one), config- likewise.
up-server1: setup ## Start a server and wait until it is healthy (also up-server2, up-server3)
up-server1 up-server2 up-server3: setup
	@$(SERVER_TOOLS) up --server $(@:up-server%=%)

down-server1: setup ## Stop a server, data is kept (also down-server2, down-server3)
down-server1 down-server2 down-server3: setup
	@$(SERVER_TOOLS) down --server $(@:down-server%=%)

ps-server1: setup ## What runs on a server, and how healthy it is (also ps-server2, ps-server3)
ps-server1 ps-server2 ps-server3: setup
	@$(SERVER_TOOLS) ps --server $(@:ps-server%=%)

logs-server1: setup ## Last lines of a server's logs, SERVICE=name for one (also logs-server2, logs-server3)
logs-server1 logs-server2 logs-server3: setup
	@$(SERVER_TOOLS) logs --server $(@:logs-server%=%) $(SERVICE)

config-server1: setup ## A server's resolved Compose file (also config-server2, config-server3)
config-server1 config-server2 config-server3: setup
	@$(SERVER_TOOLS) config --server $(@:config-server%=%)
