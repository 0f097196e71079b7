"""`python -m server_tools notify`: tell a chat's webhook how a build ended.

The address is a secret (who has it can post), so it comes from NOTIFICATION_WEBHOOK and is never printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

TIMEOUT_SECONDS = 10
OUTCOMES = ("unsuccessful", "fixed")


def message(outcome: str, environment: dict[str, str]) -> str:
    """Return one line about the build that this environment describes.

    >>> message("fixed", {"JOB_NAME": "ml-model-services/main", "BUILD_NUMBER": "7"})
    'ml-model-services/main #7: fixed'
    """
    job = environment.get("JOB_NAME", "a build by hand")
    number = f" #{environment['BUILD_NUMBER']}" if "BUILD_NUMBER" in environment else ""
    address = f" {environment['BUILD_URL']}" if "BUILD_URL" in environment else ""
    return f"{job}{number}: {outcome}{address}"


def send(webhook: str, text: str) -> None:
    """Post a text as Slack, Mattermost and others read it; plain HTTP only to this machine."""
    parts = urllib.parse.urlsplit(webhook)
    if parts.scheme != "https" and not (
        parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost"}
    ):
        raise ValueError("NOTIFICATION_WEBHOOK must be an https address")
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked above
        webhook, json.dumps({"text": text}).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310
        pass


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="server_tools notify", description=__doc__)
    parser.add_argument("--outcome", required=True, choices=OUTCOMES)
    given = parser.parse_args(arguments[1:])
    text = message(given.outcome, dict(os.environ))
    webhook = os.environ.get("NOTIFICATION_WEBHOOK", "").strip()
    print(text)
    if not webhook:
        print("told nobody: NOTIFICATION_WEBHOOK is not set")
        return 0
    try:
        send(webhook, text)
    except (ValueError, urllib.error.URLError, TimeoutError) as error:
        # An HTTPError's text has no address in it; a ValueError's is ours.
        print(f"server_tools notify: {getattr(error, 'reason', error)}", file=sys.stderr)
        return 1
    return 0
