#!/usr/bin/env python3
"""`kafka-topics.sh` as far as the stacks use it: --create [--if-not-exists], --list and --describe."""

import argparse
import sys

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--bootstrap-server", required=True)
verb = parser.add_mutually_exclusive_group(required=True)
for name in ("create", "list", "describe"):
    verb.add_argument(f"--{name}", action="store_true")
parser.add_argument("--topic")
parser.add_argument("--partitions", type=int, default=1)
parser.add_argument("--replication-factor", type=int, default=1)
parser.add_argument("--config", action="append", default=[])
parser.add_argument("--if-not-exists", action="store_true")
options = parser.parse_args()
try:
    client = KafkaAdminClient(bootstrap_servers=options.bootstrap_server, request_timeout_ms=10000)
    names = sorted(name for name in client.list_topics() if not options.topic or name == options.topic)
    if options.list:
        print("\n".join(names))
    elif options.describe:
        if not names:
            sys.exit(f"Topic '{options.topic}' does not exist")
        for topic in client.describe_topics(names):
            print(f"Topic: {topic['name']}\tPartitionCount: {len(topic['partitions'])}")
    elif options.if_not_exists and names:
        print(f"Topic {options.topic} is there.")
    else:
        settings = dict(setting.split("=", 1) for setting in options.config)
        topic = NewTopic(options.topic, options.partitions, options.replication_factor, topic_configs=settings)
        try:
            client.create_topics([topic])
            print(f"Created topic {options.topic}.")
        except TopicAlreadyExistsError:
            if not options.if_not_exists:
                raise
    client.close()
except KafkaError as error:
    sys.exit(f"kafka-topics.sh: {error}")
