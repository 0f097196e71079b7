"""What every task has in common."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

OWNER = "mlops-platform"

# Every command is safe to rerun, so a fault that passes (a restart of the database) costs one retry.
TASK_DEFAULTS: dict[str, Any] = {
    "owner": OWNER,
    "retries": 1,
    "retry_delay": timedelta(seconds=15),
    "execution_timeout": timedelta(minutes=30),
}
