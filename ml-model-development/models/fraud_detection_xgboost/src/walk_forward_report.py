"""The walk-forward run for people: a table for the terminal, and a page with weeks, costs and cost curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common_ml_utils.pages import Page, Plots, Section, Table, Text
from src.config import FraudCosts
from src.handbook_report import new_figure, png

Interval = tuple[float, float, float]
MEASURES = {
    "auc_roc": "AUC ROC",
    "average_precision": "average precision",
    "card_precision_100": "card precision@100",
    "calibration_error": "calibration error",
}


@dataclass(frozen=True)
class Measured:
    """What the weeks gave; intervals are (value, lower, upper), costs in the currency of the amounts.

    `scores` and `action_costs` (rows x approve, review, decline) are of all holdout rows; `tried` holds each
    candidate's average precision on the tuning weeks.
    """

    weeks: Sequence[tuple[int, Mapping[str, float], tuple[float, float]]]
    means: Mapping[str, Interval]
    cost_per_thousand: Mapping[str, float]
    savings: Mapping[str, Interval]
    scores: np.ndarray
    action_costs: np.ndarray
    costs: FraudCosts
    median_amount: float
    tried: Sequence[tuple[str, Sequence[float]]]
    dataset_id: str


def terminal_table(measured: Measured) -> str:
    """Return the weeks, their mean and the savings as text."""
    lines = [f"{'holdout from day':>20}" + "".join(f"{name:>22}" for name in MEASURES.values())]
    for start, metrics, _ in measured.weeks:
        lines.append(f"{start:>20}" + "".join(f"{metrics[name]:>22.4f}" for name in MEASURES))
    lines.append(
        f"{'mean (95 %)':>20}"
        + "".join(f"{'{:.4f} ({:.4f}-{:.4f})'.format(*measured.means[name]):>22}" for name in MEASURES)
    )
    for name, cost in measured.cost_per_thousand.items():
        lines.append(f"cost of 1,000 payments, {name}: {cost:,.0f}")
    for name, (share, lower, upper) in measured.savings.items():
        lines.append(f"saved beside {name}: {share:.1%} ({lower:.1%} to {upper:.1%})")
    for candidate, values in measured.tried:
        lines.append(f"tuning weeks, {candidate}: average precision {np.mean(values):.4f}")
    return "\n".join(lines)


def page(measured: Measured, date: str) -> Page:
    """Return the HTML page."""
    costs = measured.costs
    weeks = [
        [f"day {start}", *(metrics[name] for name in MEASURES), *cuts]
        for start, metrics, cuts in measured.weeks
    ]
    sections = [
        Section(
            "Week after week",
            [
                Table(["holdout from", *MEASURES.values(), "review from", "decline from"], weeks),
                Table(
                    ["mean of the weeks", "value", "95 % from", "to"],
                    [[label, *measured.means[name]] for name, label in MEASURES.items()],
                ),
                Plots({"weeks": weeks_plot(measured)}),
            ],
        ),
        Section(
            "What it saves",
            [
                Table(
                    ["policy", "cost of 1,000 payments"],
                    [[name, round(cost)] for name, cost in measured.cost_per_thousand.items()],
                ),
                Table(
                    ["saved beside", "share", "95 % from", "to"],
                    [[name, *share] for name, share in measured.savings.items()],
                ),
                Text(
                    f"A review costs {costs.review:g} and catches {costs.review_catch_rate:.0%} of frauds; "
                    f"declining a good payment costs {costs.decline_good:g}; an approved fraud costs its "
                    "amount. Thresholds come from each week's validation. Intervals: whole cards drawn with "
                    "replacement.",
                    caption=True,
                ),
                Plots({"cost curves": curves_plot(measured), "expected costs": expected_plot(measured)}),
            ],
        ),
    ]
    if measured.tried:
        rows = [[name, float(np.mean(values)), *values] for name, values in measured.tried]
        columns = ["parameters", "mean", *(f"week {i + 1}" for i in range(len(measured.tried[0][1])))]
        sections.append(Section("Tried on earlier weeks: average precision", [Table(columns, rows)]))
    return Page(
        title="The fraud model, week after week",
        subtitle=f"{date}, data {measured.dataset_id[:12]}; holdout weeks are measured once",
        summary=[],
        sections=sections,
    )


def weeks_plot(measured: Measured) -> bytes:
    """Draw each measure by week with its mean and interval."""
    figure, panels = new_figure(12, 3.6, 3)
    starts = [start for start, _, _ in measured.weeks]
    for axes, (name, label) in zip(panels, list(MEASURES.items())[:3], strict=True):
        mean, lower, upper = measured.means[name]
        axes.axhspan(lower, upper, color="tab:blue", alpha=0.15, label="95 % of the mean")
        axes.axhline(mean, color="tab:blue", linewidth=1, label=f"mean {mean:.3f}")
        axes.plot(starts, [metrics[name] for _, metrics, _ in measured.weeks], "o-", color="black")
        axes.set(title=label, xlabel="first day of the holdout week")
        axes.legend(fontsize=8)
    return png(figure)


def curves_plot(measured: Measured) -> bytes:
    """Draw the cost of 1,000 payments as a single threshold moves, beside the policies."""
    figure, (axes,) = new_figure(8, 4.4, 1)
    table, scores = measured.action_costs, measured.scores
    order = np.argsort(scores, kind="stable")
    grid = np.concatenate([np.geomspace(1e-3, 0.5, 150), np.linspace(0.5, 1, 60)])
    below = np.searchsorted(scores[order], grid)
    for name, column in (("review from there on", 1), ("decline from there on", 2)):
        approved = np.concatenate([[0], np.cumsum(table[order, 0])])
        acted = np.concatenate([[0], np.cumsum(table[order, column])])
        total = approved[below] + acted[-1] - acted[below]
        axes.plot(grid, total / len(scores) * 1000, label=name)
    styles = {
        "approve all": ("0.5", "--"),
        "cost-aware": ("tab:green", "-"),
        "decline at 0.5": ("tab:red", ":"),
    }
    for name, cost in measured.cost_per_thousand.items():
        colour, style = styles[name]
        axes.axhline(cost, color=colour, linestyle=style, label=f"{name}: {cost:,.0f}")
    axes.set_xscale("log")
    axes.set_ylim(0, measured.cost_per_thousand["approve all"] * 1.3)
    axes.set(xlabel="threshold on the score", ylabel="cost of 1,000 payments", title="One threshold, and two")
    axes.legend(fontsize=8)
    return png(figure)


def expected_plot(measured: Measured) -> bytes:
    """Draw the expected cost of each action by score, for a payment of the median amount and a large one."""
    figure, panels = new_figure(12, 3.8, 2)
    scores, costs = np.linspace(0, 1, 201), measured.costs
    for axes, amount in zip(panels, (measured.median_amount, 200.0), strict=True):
        approve = scores * amount
        axes.plot(scores, approve, label="approve")
        axes.plot(scores, costs.review + (1 - costs.review_catch_rate) * approve, label="review")
        axes.plot(scores, costs.decline_good * (1 - scores), label="decline")
        axes.set(
            xlabel="score, as P(fraud)",
            ylabel="expected cost",
            title=f"A payment of {amount:,.2f}",
            ylim=(0, 40),
        )
        axes.legend(fontsize=8)
    return png(figure)
