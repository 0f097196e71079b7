#!/usr/bin/env bash
# Create the topics of the arguments that do not stand yet: each argument is a name and its settings. Safe to rerun.
set -euo pipefail
KAFKA_HEAP_OPTS="-Xmx128m"
export KAFKA_HEAP_OPTS

standing="$(/opt/kafka/bin/kafka-topics.sh --bootstrap-server "$BOOTSTRAP" --list)"
for argument; do
    read -ra words <<<"$argument"
    name="${words[0]}"
    if grep -qxF "$name" <<<"$standing"; then
        echo "topic $name: there"
        continue
    fi
    options=()
    for setting in "${words[@]:1}"; do options+=(--config "$setting"); done
    /opt/kafka/bin/kafka-topics.sh --bootstrap-server "$BOOTSTRAP" --create --if-not-exists --topic "$name" \
        --partitions "$PARTITIONS" --replication-factor 1 ${options[@]+"${options[@]}"}
done
