"""Look at a rollout from the command line, and change the canary's share.

`python -m common_service_libs.rollout status --service fraud_detection_api` says who takes part,
`verdict` what became of it so far (both read SPOOL_DIR, as the service does), and
`share 0.05 --model fraud-detection-model` gives the canary a share of the entities: the tag `canary_share` of
the model version that the alias names, which the services read with every poll.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import msgspec

from common_service_libs.errors import RegistryError
from common_service_libs.model_registry import MlflowRegistry
from common_service_libs.rollout.choice import share_in
from common_service_libs.rollout.notes import FOLDER, Notes, Part
from common_service_libs.rollout.rollout import SHARE_TAG, verdict_on


def main(arguments: list[str] | None = None) -> int:
    """Answer one question as JSON; exit code 1 if there is nothing to say."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "share":
            return _share(options.share, options.model, options.alias)
        return _show(options)
    except (RegistryError, KeyError, OSError) as error:
        named = f"{error.args[0]} is not set" if isinstance(error, KeyError) else str(error)
        print(named, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rollout", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("status", "who takes part"), ("verdict", "the canary beside the champion")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--service", required=True)
        command.add_argument("--window-seconds", type=float, default=1800.0)
    share = commands.add_parser("share", help="give the canary a share of the entities")
    share.add_argument("share", type=share_in)
    share.add_argument("--model", required=True)
    share.add_argument("--alias", default=os.environ.get("CANARY_ALIAS", "canary"))
    return parser


def _show(options: argparse.Namespace) -> int:
    notes = Notes(Path(os.environ["SPOOL_DIR"]) / options.service / FOLDER)
    now = time.time()
    parts = sorted(notes.read(now - options.window_seconds), key=lambda part: part.updated_at)
    if not parts:
        print(f"no rollout of {options.service} in the last {options.window_seconds:.0f} s", file=sys.stderr)
        return 1
    same = [part for part in parts if part.bundles == parts[-1].bundles]
    report = verdict_on(same, now - options.window_seconds)
    if options.command == "status":
        _print(_status(same, notes) | {"verdict": report and report.verdict})
        return 0
    if report is None:
        print(f"{options.service} has no canary", file=sys.stderr)
        return 1
    _print(report)
    return 0


def _status(parts: list[Part], notes: Notes) -> dict[str, object]:
    newest = parts[-1]
    return {
        "service": newest.service,
        "champion": newest.champion,
        "canary": newest.canary,
        "shadow": newest.shadow,
        "share": newest.share,
        "aborted": notes.aborted(),
        "processes": len(parts),
        "updated_seconds_ago": round(time.time() - newest.updated_at, 1),
    }


def _share(share: float, model: str, alias: str) -> int:
    registry = MlflowRegistry(os.environ["MLFLOW_TRACKING_URI"], deadline=10, download_deadline=10)
    version = registry.by_alias(model, alias)
    if version is None:
        print(f"{model} has no alias {alias}", file=sys.stderr)
        return 1
    registry.set_tag(version, SHARE_TAG, f"{share:g}")
    print(f"{model} version {version.version}: {SHARE_TAG} {share:g}")
    return 0


def _print(document: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


if __name__ == "__main__":
    sys.exit(main())
