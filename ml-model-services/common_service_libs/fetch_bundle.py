"""Download the artifacts of one model version, in a process of its own.

The registry's client takes seconds and a hundred megabytes to import; a service that answers in a millisecond
starts this instead: `python -m common_service_libs.fetch_bundle NAME VERSION FOLDER`, with
MLFLOW_TRACKING_URI set.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys


def main(arguments: list[str] | None = None) -> int:
    """Download, and return the exit code; what went wrong is one line on standard error."""
    parser = argparse.ArgumentParser(prog="fetch_bundle", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("version", type=int)
    parser.add_argument("folder")
    parser.add_argument("--max-bytes", type=int, default=0, help="no file may grow beyond this; 0: any may")
    options = parser.parse_args(arguments)
    if options.max_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.max_bytes, options.max_bytes))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # noqa: PLC0415 - after the settings that it reads

    try:
        mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{options.name}/{options.version}", dst_path=options.folder
        )
    except (mlflow.exceptions.MlflowException, OSError) as error:
        print(" ".join(str(error).split())[:500], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
