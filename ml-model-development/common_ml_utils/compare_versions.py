"""Compare a model's newest versions: `python -m common_ml_utils.compare_versions --model NAME [--last N]`.

Writes `versions.html` and `versions.json` under the model's reports: figures with intervals over versions,
what changed from each version to the next, thresholds, aliases and the ledger's decisions. Nothing is moved.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from common_ml_utils.command_line import run_command
from common_ml_utils.errors import RegistryError
from common_ml_utils.evaluation_utils import Estimate
from common_ml_utils.mlflow_utils import CHAMPION, STAGING, ModelRegistry, VersionRecord
from common_ml_utils.model_card import CARD_JSON, interval_text, ranged
from common_ml_utils.pages import Block, Note, Page, Plots, Section, Table, Text
from common_ml_utils.plots import metric_history
from common_ml_utils.promotion.ledger import PromotionLedger
from common_ml_utils.reports import measurement, write_page, write_report
from common_ml_utils.settings import PlatformSettings

TITLES = {
    "average_precision": "average precision",
    "auc_roc": "AUC ROC",
    "brier": "Brier score (lower is better)",
}
COMPARED = 3
"""So many metrics are compared of a model that has none of `TITLES`: the first ones of its cards or runs."""
THRESHOLD = "threshold."
TAGS = {
    "data_version": "training set",
    "dvc_version": "raw files",
    "feature_service": "feature service",
    "label_policy_version": "label policy",
    "git_commit": "code (git commit)",
    "training_interval": "trained on",
    "holdout_interval": "measured on",
}
SHORT = ("data_version", "git_commit", "dvc_version")


@dataclass(frozen=True)
class Decision:
    """A decision of the ledger about a version."""

    at: datetime
    decision: str
    reason: str


@dataclass(frozen=True)
class Version:
    """What is compared of a version; `card` is its model card's JSON, None where the run has none."""

    record: VersionRecord
    card: Mapping[str, Any] | None
    decisions: Sequence[Decision]

    @property
    def number(self) -> int:
        """The version's number."""
        return self.record.version

    @property
    def facts(self) -> dict[str, str]:
        """Return the tags that tell where a version comes from."""
        tags = {**self.record.run_tags, **self.record.tags}
        return {name: tags[name] for name in TAGS if tags.get(name)}

    @property
    def parameters(self) -> dict[str, str]:
        """Return the parameters of the run without the thresholds."""
        return {n: value for n, value in self.record.parameters.items() if not n.startswith(THRESHOLD)}

    @property
    def thresholds(self) -> dict[str, float]:
        """Return the thresholds on the score by name."""
        return {
            name.removeprefix(THRESHOLD): float(value)
            for name, value in self.record.parameters.items()
            if name.startswith(THRESHOLD)
        }

    @property
    def intervals(self) -> Mapping[str, Mapping[str, float]]:
        """Return metric -> value, lower, upper as the card says them."""
        return self.card.get("intervals", {}) if self.card else {}

    def estimate(self, metric: str) -> Estimate | None:
        """Return a metric with its interval, or None where no card says it."""
        return Estimate(**self.intervals[metric]) if metric in self.intervals else None

    def shown(self, metric: str) -> str:
        """Return a metric with its interval, or as the run has it."""
        if (estimate := self.estimate(metric)) is not None:
            return ranged(estimate)
        return f"{self.record.metrics[metric]:.3f}" if metric in self.record.metrics else ranged(None)


def with_decisions(records: Sequence[VersionRecord], ledger: Sequence[Mapping[str, Any]]) -> list[Version]:
    """Return the versions, oldest first, each with the ledger's decisions about its bundle.

    A decision belongs to the version whose number and bundle hash its entry names.
    """
    versions = []
    for record in sorted(records, key=lambda each: each.version):
        decisions = []
        for row in ledger:
            entry = row["entry"]
            subject = entry.get("in_production") or entry.get("challenger") or {}
            same_bundle = subject.get("bundle_sha256") == record.tags.get("bundle_sha256")
            if subject.get("version") == record.version and same_bundle:
                reason = entry.get("reason") or "; ".join(entry.get("reasons", []))
                decisions.append(Decision(row["decided_at"], row["decision"], reason))
        card = None if record.document is None else json.loads(record.document)
        versions.append(Version(record, card, decisions))
    return versions


def compared_metrics(versions: Sequence[Version]) -> list[str]:
    """Return the names of the metrics that are compared."""
    measured = dict.fromkeys(name for each in versions for name in each.intervals)
    names = measured or dict.fromkeys(name for each in versions for name in sorted(each.record.metrics))
    return [name for name in TITLES if name in names] or list(names)[:COMPARED]


def title_of(metric: str) -> str:
    """Return a metric's name for people."""
    return TITLES.get(metric, metric.replace("_", " "))


def changes(before: Version, after: Version) -> list[tuple[str, str, str]]:
    """Return (what, before, after) of all that differs: origin, features, parameters, thresholds."""
    found = [
        (TAGS[name], _short(name, before.facts.get(name, "")), _short(name, after.facts.get(name, "")))
        for name in TAGS
        if before.facts.get(name) != after.facts.get(name)
    ]
    old, new = ((each.card or {}).get("features") for each in (before, after))
    if old and new:
        removed, added = sorted(set(old) - set(new)), sorted(set(new) - set(old))
        if removed or added:
            found.append(
                (
                    "features",
                    f"with {', '.join(removed)}" if removed else "",
                    f"with {', '.join(added)}" if added else "",
                )
            )
        elif old != new:
            found.append(("features", "in another order", ", ".join(new)))
    for name in sorted({*before.parameters, *after.parameters}):
        old_value, new_value = before.parameters.get(name, ""), after.parameters.get(name, "")
        if not _same(old_value, new_value):
            found.append((f"parameter {name}", old_value, new_value))
    for name in sorted({*before.thresholds, *after.thresholds}):
        old_cut, new_cut = (version.thresholds.get(name) for version in (before, after))
        if old_cut != new_cut:
            found.append((f"threshold {name}", _cut(old_cut), _cut(new_cut)))
    return found


def versions_page(model_name: str, versions: Sequence[Version]) -> Page:
    """Return the page; `versions` oldest first."""
    newest_first, metrics = list(reversed(versions)), compared_metrics(versions)
    return Page(
        f"{model_name}: the last {len(versions)} versions"
        if len(versions) > 1
        else f"{model_name}: one version",
        "What is in production, how the figures moved, and what changed from one version to the next.",
        [_summary(newest_first, metrics)],
        [
            Section("Versions", [_table(newest_first, metrics)]),
            Section("Figures over versions", _history(versions, metrics)),
            Section("What changed", _changes(newest_first)),
            Section("Thresholds", [_thresholds(newest_first)]),
            Section("Decisions", [_decisions(newest_first)]),
        ],
        "Times are UTC. Figures are of each version's own holdout.",
    )


def versions_document(versions: Sequence[Version]) -> list[dict[str, Any]]:
    """Return the versions as JSON, oldest first, each with what changed from the one before."""
    document = []
    for i, version in enumerate(versions):
        record = version.record
        document.append(
            {
                "version": version.number,
                "aliases": list(record.aliases),
                "registered_at": record.created_at.isoformat(),
                "run_id": record.run_id,
                "run_name": record.run_name,
                "bundle_sha256": record.tags.get("bundle_sha256"),
                **version.facts,
                "metrics": dict(record.metrics),
                "intervals": {name: dict(measured) for name, measured in version.intervals.items()},
                "thresholds": version.thresholds,
                "decisions": [
                    {"at": each.at.isoformat(), "decision": each.decision, "reason": each.reason}
                    for each in version.decisions
                ],
                "changes": [
                    {"what": what, "before": before, "after": after}
                    for what, before, after in (changes(versions[i - 1], version) if i else [])
                ],
            }
        )
    return document


def _summary(newest_first: Sequence[Version], metrics: Sequence[str]) -> Note:
    lines = []
    for alias, meaning in ((CHAMPION, "is in production"), (STAGING, "was trained last")):
        holder = next((each for each in newest_first if alias in each.record.aliases), None)
        if holder is None:
            lines.append(f"No version here {meaning} ({alias}).")
            continue
        decided = (
            f", {holder.decisions[-1].decision} on {_time(holder.decisions[-1].at)}"
            if holder.decisions
            else ""
        )
        figures = ", ".join(f"{title_of(metric)} {holder.shown(metric)}" for metric in metrics[:2])
        lines.append(f"Version {holder.number} {meaning} ({alias}): {figures}{decided}.")
    return Note("good" if any(CHAMPION in each.record.aliases for each in newest_first) else "warning", lines)


def _table(newest_first: Sequence[Version], metrics: Sequence[str]) -> Table:
    rows = []
    for each in newest_first:
        card = each.card or {}
        training = card.get("interval")
        rows.append(
            [
                str(each.number),
                ", ".join(each.record.aliases),
                _time(each.record.created_at),
                _interval(training, "start", "end") if training else each.facts.get("training_interval"),
                training["rows"] if training else None,
                card.get("rows", {}).get("holdout"),
                *(each.shown(metric) for metric in metrics[:2]),
                each.decisions[-1].decision if each.decisions else "not judged",
            ]
        )
    columns = ["version", "aliases", "registered", "trained on", "rows", "holdout rows"]
    return Table([*columns, *(title_of(metric) for metric in metrics[:2]), "verdict"], rows)


def _history(versions: Sequence[Version], metrics: Sequence[str]) -> list[Block]:
    names = [str(each.number) for each in versions]
    marked = {str(each.number): ", ".join(each.record.aliases) for each in versions if each.record.aliases}
    plots = {}
    for metric in metrics:
        estimates = [each.estimate(metric) for each in versions]
        if any(estimate is not None for estimate in estimates):
            plots[metric] = metric_history(title_of(metric), names, estimates, marked)
    if not plots:
        return [Text("No version has a model card with intervals.")]
    return [
        Plots(plots),
        Text(
            "Bars are 95 % intervals; green is the champion. Each version was measured on its own holdout: "
            "which one is better is what the gate tests, on the same rows.",
            caption=True,
        ),
    ]


def _changes(newest_first: Sequence[Version]) -> list[Block]:
    blocks: list[Block] = []
    for after, before in pairwise(newest_first):
        found = changes(before, after)
        blocks.append(Text(f"From version {before.number} to version {after.number}:"))
        if found:
            blocks.append(Table(["what", f"version {before.number}", f"version {after.number}"], found))
        else:
            blocks.append(Text("nothing that the runs record."))
    return blocks or [Text("There is one version: nothing to compare it with.")]


def _thresholds(newest_first: Sequence[Version]) -> Block:
    names = sorted({name for each in newest_first for name in each.thresholds})
    if not names:
        return Text("The runs record no thresholds.")
    rows = [[str(each.number), *(_cut(each.thresholds.get(name)) for name in names)] for each in newest_first]
    return Table(["version", *names], rows)


def _decisions(newest_first: Sequence[Version]) -> Block:
    rows = [
        [str(each.number), _time(decision.at), decision.decision, decision.reason]
        for each in newest_first
        for decision in reversed(each.decisions)
    ]
    return (
        Table(["version", "when", "decision", "why"], rows) if rows else Text("The ledger has none of these.")
    )


def _interval(training: Mapping[str, Any], start: str, end: str) -> str:
    return interval_text(datetime.fromisoformat(training[start]), datetime.fromisoformat(training[end]))


def _short(name: str, value: str) -> str:
    if name not in SHORT:
        return value
    dirty = "-dirty" if value.endswith("-dirty") else ""
    return f"{value[: 26 if ':' in value else 12]}{dirty}"


def _same(one: str, other: str) -> bool:
    """Compare two parameters as the runs record them, numbers by their value."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def _cut(value: float | None) -> str:
    return ranged(None) if value is None else f"{value:.4f}"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def compare(settings: PlatformSettings, model_name: str, last: int) -> None:
    """Read registry and ledger, and write page and JSON."""
    registry = ModelRegistry(settings.mlflow_tracking_uri)
    registry.check_reachable()
    records = registry.versions(model_name, last, CARD_JSON)
    if not records:
        raise RegistryError(f"{model_name} has no version: train one first")
    ledger = [row for row in PromotionLedger(settings.decisions_db).rows() if row["model_name"] == model_name]
    versions = with_decisions(records, ledger)
    folder = settings.reports_dir / report_folder(model_name, records[0].run_tags.get("report", ""))
    write_page(folder / "versions.html", versions_page(model_name, versions))
    write_report(
        folder / "versions.json",
        [
            measurement(f"version {each.number} {metric}", each.record.metrics[metric], "ratio")
            for each in versions
            for metric in compared_metrics(versions)
            if metric in each.record.metrics
        ],
        model_name=model_name,
        versions=versions_document(versions),
    )
    print(f"{model_name}: {len(versions)} versions compared in {folder / 'versions.html'}")


def report_folder(model_name: str, tag: str) -> str:
    """Return the folder of a model's reports: what its run says, else its name; never another place.

    >>> report_folder("fraud-detection-model", "fraud"), report_folder("m", "../../etc")
    ('fraud', 'm')
    """
    named = next((name for name in (tag, model_name) if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name)), None)
    if named is None:
        raise RegistryError(f"{model_name!r} can't name a folder of reports")
    return named


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m common_ml_utils.compare_versions", description=__doc__)
    parser.add_argument("--model", required=True, help="the registered model's name")
    parser.add_argument("--last", type=_positive, default=10, help="how many versions, newest first (10)")
    options = parser.parse_args(arguments)
    return run_command(PlatformSettings, lambda settings: compare(settings, options.model, options.last))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
