"""Ask this container's own service whether it lives; exit 1 if not. For images without curl."""

from __future__ import annotations

import http.client
import os
import sys

DEADLINE_SECONDS = 2.0


def main() -> int:
    """Return 0 if `/livez` answers 200 on the service's port."""
    host = os.environ.get("SERVICE_HOST", "127.0.0.1")
    connection = http.client.HTTPConnection(
        "127.0.0.1" if host == "0.0.0.0" else host,  # noqa: S104 - compared, not bound
        int(os.environ["SERVICE_PORT"]),
        timeout=DEADLINE_SECONDS,
    )
    try:
        connection.request("GET", "/livez")
        return 0 if connection.getresponse().status == 200 else 1
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
