"""Approve, roll back and read the ledger: `python -m common_ml_utils.promotion`.

    ledger verify [--model M]        the chain, and the aliases against it; exit 1 where something differs
    ledger show [--model M] [--last N]
    ledger at TIME [--model M]       what was in production then (UTC)
    approve --model M --by NAME --reason TEXT [--as-found]
    rollback --model M --by NAME --reason TEXT

`approve` promotes exactly the challenger whose verdict was `needs approval`. With `--as-found` it records the
version that is champion now, though no entry of the ledger put it there. `rollback` puts `previous` back.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from common_ml_utils.command_line import run_command, utc_time
from common_ml_utils.errors import LedgerError, RegistryError
from common_ml_utils.mlflow_utils import CHAMPION, PREVIOUS, STAGING, ModelRegistry, RegisteredBundle
from common_ml_utils.promotion.ledger import Production, PromotionLedger, disagreement, production_at
from common_ml_utils.settings import PlatformSettings

SHOWN = 12  # characters of a hash that people compare


class Aliases(Protocol):
    """What these commands need of the model registry."""

    def version_of(self, model_name: str, alias: str) -> int | None:
        """Return the version behind an alias."""

    def load_version(self, model_name: str, version: int) -> RegisteredBundle[Any]:
        """Return a version's verified bundle."""

    def promote(self, model_name: str, version: int) -> None:
        """Move the alias `champion`."""

    def rollback(self, model_name: str) -> tuple[int, int]:
        """Put `previous` back and return (from, to)."""


class Book(Protocol):
    """What these commands need of the ledger."""

    def rows(self) -> list[dict[str, Any]]:
        """Return all entries in order, after checking the chain."""

    def appending(
        self,
        model_name: str,
        decision: str,
        entry: Mapping[str, Any],
        after: Sequence[Mapping[str, Any]] | None = None,
    ) -> AbstractContextManager[str]:
        """Append a decision that stands only if the block succeeds."""


def approve(registry: Aliases, ledger: Book, model_name: str, by: str, reason: str) -> Production:
    """Promote the challenger that awaits approval.

    Raises LedgerError when none does, RegistryError when an alias has moved since its verdict.
    """
    rows = ledger.rows()
    mine = [row for row in rows if row["model_name"] == model_name]
    if not mine or mine[-1]["decision"] != "needs approval":
        last = f"its last decision is {mine[-1]['decision']!r}" if mine else "it has no decision yet"
        raise LedgerError(f"nothing of {model_name} awaits approval: {last}")
    verdict = mine[-1]["entry"]
    pending, standing = verdict["challenger"], verdict["in_production"]
    bundle = registry.load_version(model_name, pending["version"]).bundle
    if bundle.sha256 != pending["bundle_sha256"]:
        raise RegistryError(f"version {pending['version']} of {model_name} is not the bundle that was judged")
    moved_to = {"version": pending["version"], "bundle_sha256": pending["bundle_sha256"]}
    entry = {
        "by": by,
        "reason": reason,
        "verdict": {"seq": mine[-1]["seq"], "reasons": verdict["reasons"]},
        "challenger": pending,
        "replaced": standing,
        "in_production": moved_to,
    }
    expected = {STAGING: pending["version"], CHAMPION: None if standing is None else standing["version"]}
    with ledger.appending(model_name, "approve", entry, after=rows):
        for alias, version in expected.items():
            now = registry.version_of(model_name, alias)
            if now != version:
                raise RegistryError(
                    f"{alias} of {model_name} was version {version} when it was judged and is {now} now: "
                    "run the gate again"
                )
        registry.promote(model_name, pending["version"])
    return production_at(ledger.rows())[model_name]


def record_champion(registry: Aliases, ledger: Book, model_name: str, by: str, reason: str) -> Production:
    """Record the version that is champion though the ledger does not know; no alias moves."""
    rows = ledger.rows()
    champion = registry.version_of(model_name, CHAMPION)
    recorded = production_at(rows).get(model_name)
    if champion is None or disagreement(model_name, recorded, champion) is None:
        raise LedgerError(f"{model_name}: alias and ledger agree, there is nothing to record")
    bundle = registry.load_version(model_name, champion).bundle
    entry = {
        "by": by,
        "reason": reason,
        "as_found": True,
        "replaced": None if recorded is None else _named(recorded.version, recorded.bundle_sha256),
        "in_production": _named(champion, bundle.sha256),
    }
    with ledger.appending(model_name, "approve", entry, after=rows):
        now = registry.version_of(model_name, CHAMPION)
        if now != champion:
            raise RegistryError(
                f"{CHAMPION} of {model_name} moved from version {champion} to {now} meanwhile"
            )
    return production_at(ledger.rows())[model_name]


def roll_back(registry: Aliases, ledger: Book, model_name: str, by: str, reason: str) -> Production:
    """Put the previous champion back into production; a second call returns.

    Raises RegistryError when there is no previous version, or its bundle can't be loaded.
    """
    rows = ledger.rows()
    old, new = (registry.version_of(model_name, alias) for alias in (CHAMPION, PREVIOUS))
    if old is None or new is None or old == new:
        raise RegistryError(f"{model_name} has no {PREVIOUS} version to return to")
    entry = {
        "by": by,
        "reason": reason,
        "rolled_back": _named(old, registry.load_version(model_name, old).bundle.sha256),
        "in_production": _named(new, registry.load_version(model_name, new).bundle.sha256),
    }
    with ledger.appending(model_name, "rollback", entry, after=rows):
        moved = registry.rollback(model_name)
        if moved != (old, new):
            raise RegistryError(f"{model_name} rolled back from {moved[0]} to {moved[1]}, not {old} to {new}")
    return production_at(ledger.rows())[model_name]


def problems_of(
    rows: Sequence[Mapping[str, Any]], champions: Mapping[str, int], model_name: str | None = None
) -> list[str]:
    """Return where the alias `champion` (model name -> version) is not where the ledger put it."""
    production = production_at(rows)
    models = sorted({row["model_name"] for row in rows} | set(champions))
    wanted = [name for name in models if model_name in (None, name)]
    differing = [disagreement(name, production.get(name), champions.get(name)) for name in wanted]
    return [problem for problem in differing if problem]


def lost_verdicts(rows: Sequence[Mapping[str, Any]], reported: Mapping[str, str]) -> list[str]:
    """Return which reports (report -> `ledger_hash`) name a verdict that the ledger does not hold.

    A row cut off from the ledger's end leaves a chain that holds; the report of its verdict shows it.
    """
    hashes = {row["hash"] for row in rows}
    return [
        f"{report} reports a verdict with hash {digest[:SHOWN]}, which the ledger does not hold"
        for report, digest in reported.items()
        if digest not in hashes
    ]


def reported_hashes(reports_dir: Path) -> dict[str, str]:
    """Return the ledger hashes that the gate's reports name, by report."""
    found = {}
    for path in sorted(reports_dir.glob("*/gate.json")):
        digest = json.loads(path.read_text(encoding="utf-8")).get("ledger_hash")
        if digest:
            found[str(path.relative_to(reports_dir))] = digest
    return found


def verify(settings: PlatformSettings, model_name: str | None) -> None:
    """Check the chain, and aliases and reports against it; raises LedgerError that names what differs.

    With a model name, the aliases of that model alone: a registry may hold models the gate has no part in.
    """
    rows = PromotionLedger(settings.decisions_db).rows()
    problems = problems_of(rows, _registry(settings).champions(), model_name)
    problems += lost_verdicts(rows, reported_hashes(settings.reports_dir))
    if problems:
        raise LedgerError(
            "; ".join(problems) + ". Record what stands with `approve --as-found`, or undo it with `rollback`"
        )
    print(f"{len(rows)} entries: the chain holds, the aliases are where it put them")
    if rows:
        print(f"head {rows[-1]['hash']}")


def show(settings: PlatformSettings, model_name: str | None, last: int) -> None:
    """Print the newest entries, oldest first."""
    rows = [
        row
        for row in PromotionLedger(settings.decisions_db).rows()
        if model_name is None or row["model_name"] == model_name
    ]
    for row in rows[-last:]:
        print(described(row))
    if not rows:
        print("no entry")


def described(row: Mapping[str, Any]) -> str:
    """Return one entry as a line."""
    entry = row["entry"]
    version = (entry.get("challenger") or entry.get("in_production") or {}).get("version")
    why = entry.get("reason") or "; ".join(entry.get("reasons", []))
    by = f" by {entry['by']}" if "by" in entry else ""
    return (
        f"{row['seq']:>4}  {row['decided_at'].astimezone(UTC):%Y-%m-%d %H:%M:%S}Z  {row['hash'][:SHOWN]}  "
        f"{row['model_name']} version {version}: {row['decision']}{by}: {why}"
    )


def show_at(settings: PlatformSettings, time: datetime, model_name: str | None) -> None:
    """Print what was in production at a time; raises LedgerError for a model that was not."""
    production = production_at(PromotionLedger(settings.decisions_db).rows(), time)
    wanted = sorted(production) if model_name is None else [model_name]
    if not wanted:
        print(f"nothing was in production at {time:%Y-%m-%d %H:%M:%S}Z")
    for name in wanted:
        if name not in production:
            raise LedgerError(f"nothing of {name} was in production at {time:%Y-%m-%d %H:%M:%S}Z")
        print(standing(production[name]))


def standing(found: Production) -> str:
    """Return what is in production as a line."""
    return (
        f"{found.model_name} version {found.version}, bundle {found.bundle_sha256[:SHOWN]}, since "
        f"{found.since.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z "
        f"({found.decision} by {found.by}, entry {found.seq})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)

    def work(settings: PlatformSettings) -> None:
        if options.command == "ledger":
            reading: dict[str, Callable[[], None]] = {
                "verify": lambda: verify(settings, options.model),
                "show": lambda: show(settings, options.model, options.last),
                "at": lambda: show_at(settings, options.time, options.model),
            }
            reading[options.action]()
            return
        act = roll_back if options.command == "rollback" else approve
        if options.command == "approve" and options.as_found:
            act = record_champion
        ledger = PromotionLedger(settings.decisions_db)
        print(standing(act(_registry(settings), ledger, options.model, options.by, options.reason)))

    return run_command(PlatformSettings, work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m common_ml_utils.promotion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    actions = commands.add_parser("ledger").add_subparsers(dest="action", required=True)
    verified = actions.add_parser("verify")
    shown = actions.add_parser("show")
    shown.add_argument("--last", type=int, default=20)
    at = actions.add_parser("at")
    at.add_argument("time", type=utc_time, help="ISO date or time, UTC")
    for each in (verified, shown, at):
        each.add_argument("--model")
    for name in ("approve", "rollback"):
        command = commands.add_parser(name)
        command.add_argument("--model", required=True, type=_text)
        command.add_argument("--by", required=True, type=_text, help="who decides")
        command.add_argument("--reason", required=True, type=_text)
        if name == "approve":
            command.add_argument("--as-found", action="store_true", help="record the present champion")
    return parser


def _text(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return value.strip()


def _registry(settings: PlatformSettings) -> ModelRegistry:
    registry = ModelRegistry(settings.mlflow_tracking_uri)
    registry.check_reachable()
    return registry


def _named(version: int, bundle_sha256: str) -> dict[str, Any]:
    return {"version": version, "bundle_sha256": bundle_sha256}
