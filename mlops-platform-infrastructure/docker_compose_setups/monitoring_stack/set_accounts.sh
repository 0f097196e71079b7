#!/usr/bin/env bash
# Give Elasticsearch's accounts the passwords of their secrets: `kibana_system`, which is built in, and `filebeat`, which
# may bring logs and set up where they go, and read none. Safe to rerun.
set -euo pipefail
elastic="$(</run/secrets/elastic_password)"
kibana="$(</run/secrets/kibana_system_password)"
filebeat="$(</run/secrets/filebeat_password)"

# ask METHOD PATH JSON. From standard input: the process list shows no password.
ask() {
    curl --silent --show-error --fail --max-time 20 --output /dev/null --config - <<CONFIG
url = "http://elasticsearch:9200/_security/$2"
user = "elastic:${elastic}"
request = $1
header = "Content-Type: application/json"
data = "${3//\"/\\\"}"
CONFIG
}

ask POST user/kibana_system/_password "{\"password\": \"${kibana}\"}"
echo "kibana_system: its password is that of the secret"
ask PUT role/filebeat '{"cluster": ["monitor", "manage_ilm", "manage_index_templates", "read_pipeline"],'\
' "indices": [{"names": ["filebeat-*"], "privileges": ["auto_configure", "create_doc", "manage"]}]}'
ask PUT user/filebeat "{\"password\": \"${filebeat}\", \"roles\": [\"filebeat\"]}"
echo "filebeat: its role may write logs, its password is that of the secret"
