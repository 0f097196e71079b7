"""Exit 0 when Airflow's API server calls the component of the argument healthy: its heart beat lately."""

from __future__ import annotations

import json
import sys
import urllib.request

HEALTH = "http://airflow-api-server:8080/api/v2/monitor/health"

with urllib.request.urlopen(HEALTH, timeout=6) as reply:
    state = json.load(reply).get(sys.argv[1], {}).get("status")
print(state)
sys.exit(0 if state == "healthy" else 1)
