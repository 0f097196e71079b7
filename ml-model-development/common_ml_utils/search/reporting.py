"""What a search found: `search.json`, `search.html` with plots, and the settings to use."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common_ml_utils.hyperparameter_search import SearchOutcome, SearchProblem, environment_lines
from common_ml_utils.reports import measurement, write_html, write_report

ENOUGH_FOR_IMPORTANCE = 4
WIDE = ("slices", "parallel")
MOST_NAMES = 12


def print_best(outcome: SearchOutcome) -> None:
    """Print the settings that make the best parameters the project's, ready for a file of settings."""
    print("\n".join(environment_lines(outcome.best)))


def write_search_report(folder: Path, study: Any, problem: SearchProblem, outcome: SearchOutcome) -> None:
    """Write `search.json` and `search.html`."""
    trials = study.get_trials(deepcopy=False)
    importance = importances(study)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    current = next((trial.value for trial in complete if trial.user_attrs.get("current")), None)
    states = [trial.state.name for trial in trials]
    counts = {name.lower(): states.count(name) for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")}
    write_report(
        folder / "search.json",
        [
            measurement(
                f"validation_{problem.metric}",
                outcome.value,
                "ratio",
                peer="settings before the search" if current is not None else "",
                peer_value=current,
            )
        ],
        study=outcome.study,
        problem=problem.identity(),
        best={"value": outcome.value, "trial": study.best_trial.number, "parameters": outcome.best},
        settings=environment_lines(outcome.best),
        value_before=current,
        counts=counts,
        importances=importance,
        trials=[_trial(trial) for trial in trials],
    )
    write_html(
        folder / "search.html",
        f"Search {outcome.study}",
        {
            f"Best of {outcome.finished} trials": {
                f"{problem.metric}, mean of {len(problem.folds)} validation folds": outcome.value,
                "with the settings before the search": "not tried" if current is None else current,
                **{f"fold {name}": value for name, value in _folds(study, problem)},
            },
            "Settings to use": dict(line.split("=", 1) for line in environment_lines(outcome.best)),
            "Trials": counts,
            "Problem": problem.identity(),
        },
        search_plots(study, problem.metric),
    )


def importances(study: Any) -> dict[str, float]:
    """Return the share of the variance that each parameter explains; empty while trials are too few."""
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < ENOUGH_FOR_IMPORTANCE or len({trial.value for trial in complete}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: round(float(value), 4) for name, value in found.items()}


def search_plots(study: Any, metric: str) -> dict[str, bytes]:
    """Return PNGs of Optuna's plots: history, how trials went, importance, slices, parallel coordinates."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter
    from optuna.visualization import matplotlib as plots

    from common_ml_utils.search.study import experimental

    drawings: dict[str, Callable[[], Any]] = {
        "history": lambda: plots.plot_optimization_history(study, target_name=metric),
        "intermediate_values": lambda: plots.plot_intermediate_values(study),
    }
    if importances(study):
        drawings |= {
            "importance": lambda: plots.plot_param_importances(study, target_name=metric),
            "slices": lambda: plots.plot_slice(study, target_name=metric),
            "parallel": lambda: plots.plot_parallel_coordinate(study, target_name=metric),
        }
    pictures = {}
    for name, draw in drawings.items():
        try:
            with experimental():
                draw()
            figure = pyplot.gcf()
            figure.set_size_inches(14 if name in WIDE else 9, 4.5)
            for axes in figure.axes if name == "slices" else ():
                axes.xaxis.set_minor_formatter(NullFormatter())
                axes.tick_params(axis="x", labelrotation=45)
                axes.xaxis.label.set_fontsize(8)
            legend = figure.axes[0].get_legend()
            if legend and len(legend.get_texts()) > MOST_NAMES:
                legend.remove()
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight", metadata={"Software": None})
            pictures[name] = buffer.getvalue()
        finally:
            pyplot.close("all")
    return pictures


def _folds(study: Any, problem: SearchProblem) -> list[tuple[str, float]]:
    names = [fold.name for fold in problem.folds]
    return list(zip(names, study.best_trial.user_attrs["folds"], strict=True))


def _trial(trial: Any) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state.name == "COMPLETE" else None,
        "parameters": trial.params,
        "folds": trial.user_attrs.get("folds"),
        "steps": len(trial.intermediate_values),
        "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 3),
    }
