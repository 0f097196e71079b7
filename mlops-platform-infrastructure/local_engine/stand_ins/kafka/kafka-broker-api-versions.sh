#!/usr/bin/env python3
"""`kafka-broker-api-versions.sh --bootstrap-server HOST:PORT`: exit 0 when a broker answers."""

import argparse
import sys

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--bootstrap-server", required=True)
options, _ = parser.parse_known_args()
try:
    client = KafkaAdminClient(bootstrap_servers=options.bootstrap_server, request_timeout_ms=4000)
    print(f"{options.bootstrap_server} (id: 1) -> answers")
    client.close()
except KafkaError as error:
    sys.exit(f"{options.bootstrap_server} does not answer: {error}")
