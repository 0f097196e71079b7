#!/usr/bin/env bash
# Give Elasticsearch's built-in account `kibana_system` the password of its secret. Safe to rerun.
set -euo pipefail
elastic="$(</run/secrets/elastic_password)"
kibana="$(</run/secrets/kibana_system_password)"
# From standard input: the process list shows neither password.
curl --silent --show-error --fail --max-time 20 --config - <<CONFIG
url = "http://elasticsearch:9200/_security/user/kibana_system/_password"
user = "elastic:${elastic}"
request = POST
header = "Content-Type: application/json"
data = "{\"password\": \"${kibana}\"}"
CONFIG
echo "kibana_system: its password is that of the secret"
