"""Simulate card transactions with known frauds into a landing folder.

`python -m data_transformation_pipelines.python_scripts_feast.simulate_transactions --out DIR`

Writes one file of transactions and one of labels a day and a manifest (see `landing_files`). With the same
parameters and intact files nothing is written.

Exit 0: DIR holds the data set; 1: DIR can't be used or written, or memory is short; 2: bad parameters.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from .command_line import BAD_USAGE, OneLineParser, iso_date, whole_number
from .handbook_simulator import FIRST_DAY, SimulationParameters, simulate
from .landing_files import (
    INCOMING_NAME,
    LandingError,
    Manifest,
    dataset_id,
    day_of,
    first_difference,
    locked,
    read_manifest,
    write_dataset,
)

PROGRESS_AFTER_SECONDS = 1.0


def parse_arguments(argv: Sequence[str] | None) -> tuple[SimulationParameters, argparse.Namespace]:
    """Return the parameters and the other options; leaves with exit 2 and one line where they are wrong."""
    parser = OneLineParser(
        prog="simulate_transactions", description="Simulate card transactions with known frauds."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the landing folder")
    parser.add_argument("--customers", type=whole_number, default=5_000, help="default %(default)s")
    parser.add_argument("--terminals", type=whole_number, default=10_000, help="default %(default)s")
    parser.add_argument("--days", type=whole_number, default=183, help="default %(default)s")
    calendar = parser.add_mutually_exclusive_group()
    calendar.add_argument(
        "--start-date", type=iso_date, default=FIRST_DAY, help="the first simulated day, default %(default)s"
    )
    calendar.add_argument("--end-date", type=iso_date, help="instead: the last simulated day")
    parser.add_argument("--force", action="store_true", help="simulate again whatever DIR holds")
    arguments = parser.parse_args(argv)
    sizes = {"customers": arguments.customers, "terminals": arguments.terminals, "days": arguments.days}
    try:
        if arguments.end_date:
            return SimulationParameters.ending(arguments.end_date, **sizes), arguments
        return SimulationParameters(**sizes, start_date=arguments.start_date), arguments
    except ValueError as error:
        parser.error(str(error))


def reason_to_simulate(folder: Path, parameters: SimulationParameters) -> str | None:
    """Return why the folder does not serve as it is, None where it does.

    LandingError where it holds day files that no simulation of ours left there.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        if any(day_of(path.name) for path in folder.iterdir()) and not (folder / INCOMING_NAME).exists():
            raise LandingError(f"{folder} holds day files but no dataset.json: --force replaces them")
        return "nothing is there yet"
    if manifest.dataset_id != dataset_id(parameters):
        return f"it holds another data set ({manifest.dataset_id[:12]})"
    changed = first_difference(folder, manifest)
    return f"{changed} is missing or not as its manifest says" if changed else None


def prepare(folder: Path, parameters: SimulationParameters, *, force: bool) -> Manifest:
    """Bring the folder to hold the data set of the parameters and return its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, exclusive=True):
        reason = "--force" if force else reason_to_simulate(folder, parameters)
        if reason is None:
            manifest = read_manifest(folder)
            assert manifest is not None
            print(f"{folder}: reused, all {len(manifest.files)} files are intact")
            return manifest
        print(f"{folder}: simulating ({reason})", flush=True)
        with tqdm(
            total=parameters.customers, unit="customer", delay=PROGRESS_AFTER_SECONDS, disable=None
        ) as progress:
            transactions = simulate(parameters, progress=progress.update)
        return write_dataset(folder, transactions, parameters)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parameters, arguments = parse_arguments(argv)
    started = time.monotonic()
    if arguments.out.exists() and not arguments.out.is_dir():
        print(f"simulate_transactions: {arguments.out} is not a folder", file=sys.stderr)
        return BAD_USAGE
    try:
        manifest = prepare(arguments.out, parameters, force=arguments.force)
    except (LandingError, OSError) as error:
        print(f"simulate_transactions: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("simulate_transactions: not enough memory for so many customers and days", file=sys.stderr)
        return 1
    scenarios = " / ".join(f"{count:,}" for count in manifest.frauds_by_scenario.values())
    print(
        f"{manifest.transactions:,} transactions, {manifest.frauds:,} frauds (by scenario {scenarios}), "
        f"{parameters.start_date} to {parameters.end_date}, data set {manifest.dataset_id[:12]}, "
        f"{time.monotonic() - started:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
