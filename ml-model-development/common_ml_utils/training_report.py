"""What a training leaves for people and machines: the page `train.html`, `train.json` and the run's notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from common_ml_utils.model_card import (
    FOLDER,
    Card,
    card_files,
    explanation_blocks,
    groups_blocks,
    interval_text,
    performance_blocks,
    summary,
    threshold_blocks,
)
from common_ml_utils.pages import Facts, Links, Page, Section
from common_ml_utils.reports import measurement, write_files, write_page, write_report


def write_training_report(folder: Path, card: Card, seconds: Mapping[str, float]) -> None:
    """Write the model card with its plots, `train.html`, and `train.json` last."""
    plots = {f"plots/{name}.png": content for name, content in card.plots.items()}
    write_files(folder, {**plots, **card_files(card)})
    write_page(folder / "train.html", training_page(card, seconds))
    manifest, measures = card.manifest, card.measures
    training, overall = manifest.training, measures.overall
    metrics = measures.metrics
    write_report(
        folder / "train.json",
        [measurement(name, value, "ratio") for name, value in metrics.items()],
        model_name=manifest.model_name,
        version=card.version,
        bundle_sha256=card.bundle_sha256,
        metrics=metrics,
        validation=list(card.folds),
        validation_mean=validation_means(card),
        thresholds={outcome.name: outcome.threshold for outcome in measures.thresholds},
        confusion={
            outcome.name: {
                "true_positive": outcome.true_alerts,
                "false_positive": outcome.alerts - outcome.true_alerts,
                "false_negative": overall.positives - outcome.true_alerts,
                "true_negative": overall.rows - overall.positives - outcome.alerts + outcome.true_alerts,
            }
            for outcome in measures.thresholds
        },
        rows={
            "training": training.rows,
            "training_positives": training.positives,
            "holdout": overall.rows,
            "holdout_positives": overall.positives,
        },
        interval=training.model_dump(mode="json"),
        data_version=manifest.data_version,
        raw_data=card.raw_data,
        git_commit=manifest.git_commit,
        seconds=dict(seconds),
        measures=asdict(measures),
    )


def training_page(card: Card, seconds: Mapping[str, float]) -> Page:
    """Return the page of a training: the summary on top, figures with intervals, plots and groups."""
    training = card.manifest.training
    steps = ", ".join(f"{step} {taken:.1f} s" for step, taken in seconds.items())
    return Page(
        f"{card.name}: the challenger",
        f"Trained on {interval_text(training.start, training.end)}, measured on other rows of "
        f"{interval_text(training.holdout_start, training.holdout_end)}. Whether it replaces the champion is "
        "the gate's decision.",
        [summary(card), Links({"Model card": f"{FOLDER}/model_card.html", "Figures as JSON": "train.json"})],
        [
            Section("How well it does", performance_blocks(card)),
            Section("Thresholds and what they cost", threshold_blocks(card)),
            Section("Groups", groups_blocks(card)),
            Section("What moves the score", explanation_blocks(card)),
            Section("This run", [Facts({"Seconds": steps, "Code (git commit)": card.manifest.git_commit})]),
        ],
        "Times are UTC.",
    )


def validation_means(card: Card) -> dict[str, float]:
    """Return `validation_<metric>`, the mean over the folds."""
    return {
        f"validation_{name}": sum(fold[name] for fold in card.folds) / len(card.folds)
        for name in card.folds[0]
    }


def run_metrics(card: Card) -> dict[str, float]:
    """Return all metrics of a run: holdout, means over folds, and each fold as `fold_<n>/<metric>`."""
    folds = {
        f"fold_{number}/{name}": value
        for number, fold in enumerate(card.folds, start=1)
        for name, value in fold.items()
    }
    saved = card.measures.costs.saved_a_row
    return {
        **card.measures.metrics,
        **validation_means(card),
        **folds,
        **({"saved_per_1000_rows": saved.value * 1000} if saved else {}),
    }


def run_note(card: Card) -> str:
    """Return a few lines of Markdown for the run's and the version's page."""
    training, overall = card.manifest.training, card.measures.overall
    return "\n".join(
        [
            *summary(card).lines,
            "",
            f"- trained on {interval_text(training.start, training.end)}: {training.rows:,} rows, "
            f"{training.positives:,} positives",
            f"- measured on {interval_text(training.holdout_start, training.holdout_end)}: "
            f"{overall.rows:,} other rows, {overall.positives:,} positives",
            f"- data version `{card.manifest.data_version[:12]}`, commit `{card.manifest.git_commit}`",
            f"- model card: artifact `{FOLDER}/model_card.html`",
        ]
    )


def model_note(card: Card) -> str:
    """Return a few lines of Markdown for the registered model's page."""
    if card.text is None:
        return f"`{card.manifest.model_name}` on feature service `{card.service.name}`."
    text = card.text
    uses = "\n".join(f"- {use}" for use in text.intended_use)
    never = "\n".join(f"- not: {use}" for use in text.not_for)
    return (
        f"{text.purpose}\n\nOwner: {text.owner}. Feature service: `{card.service.name}`."
        f"\n\n{uses}\n{never}\n\n"
        "Aliases: `champion` is in production, `staging` was trained last, `previous` is what a rollback "
        "returns to."
    )
