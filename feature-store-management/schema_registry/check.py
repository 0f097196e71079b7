"""Compare the contracts with their published versions: `python -m schema_registry.check [--publish]`.

Exit 0: every contract is what was last published. Exit 1: a contract is wrong, changed incompatibly (the
field and the reason are named), or changed and not published yet; `--publish` writes compatible changes into
the history. An incompatible change needs a new contract (`transactions.v2`) beside the old one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .contracts import SCHEMAS_DIR, ContractError, check_all, publish


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m schema_registry.check", description=__doc__)
    parser.add_argument("--publish", action="store_true", help="add compatible changes to the history")
    parser.add_argument("--folder", type=Path, default=SCHEMAS_DIR, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        verdicts = check_all(options.folder)
    except ContractError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    refused = [verdict for verdict in verdicts if verdict.reasons]
    for verdict in refused:
        family, _, number = verdict.name.rpartition(".v")
        print(f"refused: {verdict.name} changed incompatibly", file=sys.stderr)
        for reason in verdict.reasons:
            print(f"  {reason}", file=sys.stderr)
        print(
            f"  keep what was published, or write {family}.v{int(number) + 1} beside it; nobody reads two"
            " meanings under one name",
            file=sys.stderr,
        )
    waiting = [verdict for verdict in verdicts if verdict.is_new and not verdict.reasons]
    for verdict in waiting:
        if options.publish and not refused:
            print(f"published {publish(verdict, options.folder).relative_to(options.folder)}")
        else:
            state = "changed compatibly" if verdict.next_version > 1 else "is new"
            print(
                f"{verdict.name} {state}: add version {verdict.next_version} with --publish", file=sys.stderr
            )
    if refused or (waiting and not options.publish):
        return 1
    print(f"{len(verdicts)} contracts hold what they promised")
    return 0


if __name__ == "__main__":
    sys.exit(main())
