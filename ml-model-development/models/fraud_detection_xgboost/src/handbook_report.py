"""What the Handbook's protocols gave, beside what its authors published: terminal, HTML page, JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common_ml_utils.pages import Facts, Note, Page, Plots, Section, Table, Text
from common_ml_utils.reports import measurement
from src.handbook_protocol import MEASURES, TEST_FOLDS, Tuned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PUBLISHED_FILE = Path(__file__).with_name("handbook_published.json")
NAMES = {
    "auc_roc": "AUC ROC",
    "average_precision": "average precision",
    "card_precision_100": "card precision@100",
}
SINGLE, PREQUENTIAL = "single split", "prequential"
COLOURS = {"published": "0.65", "published features": "tab:blue", "platform features": "tab:orange"}


@dataclass(frozen=True)
class Measured:
    """All that a run found; the keys of the outer mappings are names of feature definitions.

    `single` holds measures by kind of model, `curves` recall and precision of its test week, `tuned` the
    prequential result. `full` says whether the published figures are comparable: the whole simulated set.
    """

    full: bool
    rows: Mapping[str, tuple[int, int]]
    dataset_id: str
    seconds: Mapping[str, float]
    single: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    tuned: dict[str, dict[str, Tuned]] = field(default_factory=dict)

    def figures(self, protocol: str) -> dict[str, dict[str, dict[str, float]]]:
        """Return definition -> kind -> measure -> value of a protocol."""
        if protocol == SINGLE:
            return self.single
        return {
            name: {kind: tuned.means for kind, tuned in kinds.items()} for name, kinds in self.tuned.items()
        }


@cache
def published() -> dict[str, Any]:
    """Return the published figures and this project's targets."""
    return dict(json.loads(PUBLISHED_FILE.read_text(encoding="utf-8")))


def result_lines(measured: Measured) -> list[dict[str, Any]]:
    """Return `results` of the JSON report; a scaled-down set has neither peer nor target."""
    lines = []
    for protocol in (SINGLE, PREQUENTIAL):
        for definition, kinds in measured.figures(protocol).items():
            for kind, figures in kinds.items():
                theirs = published()["published"][protocol].get(kind, {}) if measured.full else {}
                targets = published()["targets"][protocol].get(kind, {}) if measured.full else {}
                for measure, value in figures.items():
                    lines.append(
                        measurement(
                            f"{kind}, {protocol}, {definition}: {NAMES[measure]}",
                            value,
                            "ratio",
                            target=targets.get(measure),
                            peer=f"Fraud Detection Handbook, {kind}" if measure in theirs else "",
                            peer_value=theirs.get(measure),
                        )
                    )
    return lines


def comparison_rows(measured: Measured, protocol: str) -> list[list[Any]]:
    """Return a table's rows: for each model the published figures, then ours by definition of features."""
    figures = {"published": published()["published"][protocol], **measured.figures(protocol)}
    ours = next(iter(measured.figures(protocol).values()))
    return [
        [
            kind,
            who if who == "published" else f"ours, {who}",
            *(_three(values[kind][measure]) for measure in MEASURES),
        ]
        for kind in dict.fromkeys([*ours, *figures["published"]])
        for who, values in figures.items()
        if kind in values
    ]


COLUMNS = ["model", "whose", *NAMES.values()]


def terminal_table(measured: Measured, protocol: str) -> str:
    """Return the comparison as text for people."""
    lines = [protocol, f"{'':24}{'':28}" + "".join(f"{name:>20}" for name in NAMES.values())]
    last = ""
    for kind, who, *values in comparison_rows(measured, protocol):
        shown = kind if kind != last else ""
        lines.append(f"{shown:24}{who:28}" + "".join(f"{value:>20}" for value in values))
        last = kind
    return "\n".join(lines)


def page(measured: Measured, date: str) -> Page:
    """Return the HTML page."""
    lines = result_lines(measured)
    aimed = [line for line in lines if line["target"] is not None]
    met = sum(bool(line["met"]) for line in aimed)
    if measured.full:
        missed = [
            f"{line['name']}: {line['value']:.4f}, target {line['target']}"
            for line in aimed
            if not line["met"]
        ]
        summary = Note(
            "good" if met == len(aimed) else "bad", [f"{met} of {len(aimed)} targets met.", *missed]
        )
    else:
        summary = Note("warning", ["A scaled-down set: the published figures are not comparable."])
    return Page(
        title="The Fraud Detection Handbook, reproduced",
        subtitle=f"Our models beside the published figures. {date}, data {measured.dataset_id[:12]}",
        summary=[summary],
        sections=[
            Section(
                "Single split: models as they come",
                [
                    Table(COLUMNS, comparison_rows(measured, SINGLE)),
                    Text("Learned from 25 to 31 July 2018, measured on 8 to 14 August.", caption=True),
                    Plots({"single": bars_plot(measured, SINGLE), "curves": curves_plot(measured)}),
                ],
            ),
            Section(
                "Prequential: four weeks, tuned on earlier weeks",
                [
                    Table(COLUMNS, comparison_rows(measured, PREQUENTIAL)),
                    Text(
                        "Means of four test weeks. As published, each measure has its own choice of"
                        " parameters, made on four tuning folds whose labels are known when the first test"
                        " week begins.",
                        caption=True,
                    ),
                    Plots({"prequential": bars_plot(measured, PREQUENTIAL), "folds": folds_plot(measured)}),
                ],
            ),
            Section("What tuning chose", [Table(*_choices(measured))]),
            Section("All that was tried", [Table(*_tried(measured))]),
            Section(
                "Data",
                [
                    Facts(
                        {
                            **{
                                f"{name}: transactions / frauds": f"{rows:,} / {frauds:,}"
                                for name, (rows, frauds) in measured.rows.items()
                            },
                            **{f"seconds: {name}": seconds for name, seconds in measured.seconds.items()},
                        }
                    ),
                    Text(f"Published figures: {published()['source']}.", caption=True),
                ],
            ),
        ],
    )


def bars_plot(measured: Measured, protocol: str) -> bytes:
    """Draw each measure by model: published, and ours under both definitions of features."""
    figures = measured.figures(protocol)
    kinds = list(next(iter(figures.values())))
    theirs = published()["published"][protocol]
    groups = {"published": theirs, **figures}
    figure, panels = new_figure(12, 3.8, 3)
    for axes, measure in zip(panels, MEASURES, strict=True):
        every = []
        for i, (who, values) in enumerate(groups.items()):
            heights = [values.get(kind, {}).get(measure, np.nan) for kind in kinds]
            every += heights
            places = np.arange(len(kinds)) + (i - 1) * 0.27
            drawn = axes.bar(places, heights, width=0.25, color=COLOURS[who], label=who)
            axes.bar_label(drawn, fmt="%.3f", fontsize=7)
        low, high = np.nanmin(every), np.nanmax(every)
        axes.set_ylim(max(0.0, low - 0.6 * (high - low) - 0.02), high + 0.25 * (high - low) + 0.01)
        axes.set_xticks(range(len(kinds)), [kind.replace(" ", "\n") for kind in kinds])
        axes.set_title(NAMES[measure])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=3)
    panels[0].set_ylabel("axis does not start at 0", fontsize=8)
    return png(figure)


def folds_plot(measured: Measured) -> bytes:
    """Draw each measure on each test week, by model and definition; the line is the published mean."""
    figure, panels = new_figure(12, 4.0, 3)
    for axes, measure in zip(panels, MEASURES, strict=True):
        for definition, kinds in measured.tuned.items():
            shift = -0.13 if definition == "published features" else 0.13
            for place, (kind, tuned) in enumerate(kinds.items()):
                values = tuned.folds[measure]
                axes.plot(
                    np.full(len(values), place + shift),
                    values,
                    "o",
                    color=COLOURS[definition],
                    alpha=0.75,
                    label=definition if place == 0 else None,
                )
                axes.plot(place + shift, np.mean(values), "_", color="black", markersize=14)
                mean = published()["published"][PREQUENTIAL].get(kind, {}).get(measure)
                if mean is not None:
                    axes.plot([place - 0.3, place + 0.3], [mean, mean], ":", color="0.4")
        kinds_named = [kind.replace(" ", "\n") for kind in next(iter(measured.tuned.values()))]
        axes.set_xticks(range(len(kinds_named)), kinds_named)
        axes.set_title(f"{NAMES[measure]}, each test week")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=2)
    panels[0].set_ylabel("bar: our mean, dotted: published", fontsize=8)
    return png(figure)


def curves_plot(measured: Measured) -> bytes:
    """Draw precision against recall on the single split's test week."""
    figure, panels = new_figure(12, 4.2, len(measured.curves))
    for axes, (definition, curves) in zip(panels, measured.curves.items(), strict=True):
        for kind, (recall, precision) in curves.items():
            value = measured.single[definition][kind]["average_precision"]
            axes.step(recall, precision, where="post", label=f"{kind}, AP {value:.3f}")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02), title=definition)
        axes.legend(fontsize=8)
    return png(figure)


def _choices(measured: Measured) -> tuple[list[str], list[list[Any]]]:
    weeks = [f"day {fold.test[0]}" for fold in TEST_FOLDS]
    rows = [
        [
            definition,
            kind,
            NAMES[measure],
            _parameters(tuned.chosen[measure]),
            *map(_three, tuned.folds[measure]),
        ]
        for definition, kinds in measured.tuned.items()
        for kind, tuned in kinds.items()
        for measure in MEASURES
    ]
    return ["features", "model", "measure", "chosen", *weeks[: len(rows[0]) - 4]], rows


def _tried(measured: Measured) -> tuple[list[str], list[list[Any]]]:
    rows = [
        [definition, kind, _parameters(parameters), *(_three(values[measure]) for measure in MEASURES)]
        for definition, kinds in measured.tuned.items()
        for kind, tuned in kinds.items()
        for parameters, values in tuned.tuning
    ]
    return ["features", "model", "parameters", *(f"{NAMES[name]}, tuning" for name in MEASURES)], rows


def _parameters(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items()) or "as it comes"


def _three(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}".replace("0.", ".", 1)


def new_figure(width: float, height: float, panels: int) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with panels side by side that belongs to no window system and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(1, panels)))


def png(figure: Figure) -> bytes:
    """Return the figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
