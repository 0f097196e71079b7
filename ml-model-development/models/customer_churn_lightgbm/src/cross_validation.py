"""Measure the churn recipe on all labelled subscribers: `python -m src.cross_validation [--as-of T]`.

Every score here is of a row its model had not seen. Beside the recipe stand a logistic regression in the same
folds and a nested run, whose hyperparameters each fold chooses on its own fit rows. Nothing is registered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from tqdm import tqdm

from common_ml_utils.command_line import run_command, utc_time
from common_ml_utils.data_schemas.training_data_contract import FeatureServiceContract
from common_ml_utils.evaluation_utils import (
    METRICS,
    Ranking,
    expected_calibration_error,
    paired_bootstrap,
)
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.reports import measurement, write_html, write_report
from src import plots, value
from src.config import FEATURE_SERVICE, ChurnFolds, ChurnHyperparameters, ChurnTrainingSettings, ChurnValues
from src.data_loader import LABEL, fold_positions, load_labelled
from src.train import fit_lightgbm

AUC_TARGET, AP_TARGET, CALIBRATION_TARGET = 0.848, 0.668, 0.03
Scorer = Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]
"""Fits on the first frame and returns P(positive) of the second one's rows."""


@dataclass(frozen=True)
class Subject:
    """What is measured: labelled rows, their features, the recipe and the values of its actions."""

    frame: pd.DataFrame
    service: FeatureServiceContract
    label: str
    hyperparameters: ChurnHyperparameters
    values: ChurnValues
    folds: ChurnFolds = field(default_factory=ChurnFolds)

    @property
    def labels(self) -> np.ndarray:
        """The labels, 0 or 1."""
        return self.frame[self.label].to_numpy()

    def boosted(self, parameters: ChurnHyperparameters) -> Scorer:
        """Return the recipe with given hyperparameters; categories are those of the fit rows."""

        def scores(fit: pd.DataFrame, unseen: pd.DataFrame) -> np.ndarray:
            preprocessing = Preprocessing.fit(self.service, fit)
            model = fit_lightgbm(preprocessing, fit, fit[self.label].to_numpy(), parameters)
            return model.scores(preprocessing.transform(unseen))

        return scores

    def logistic(self, fit: pd.DataFrame, unseen: pd.DataFrame) -> np.ndarray:
        """Score with a logistic regression on standardised numbers and one column a category."""
        numbers = [f.name for f in self.service.features if not f.is_categorical]
        categories = [f.name for f in self.service.features if f.is_categorical]
        number = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
        category = make_pipeline(
            SimpleImputer(strategy="constant", fill_value="(null)"), OneHotEncoder(handle_unknown="ignore")
        )
        columns = ColumnTransformer([("number", number, numbers), ("category", category, categories)])
        model = make_pipeline(columns, LogisticRegression(max_iter=2000))
        frames = [
            part[numbers + categories].fillna(dict.fromkeys(categories, np.nan)) for part in (fit, unseen)
        ]
        return model.fit(frames[0], fit[self.label]).predict_proba(frames[1])[:, 1]


def candidates(parameters: ChurnHyperparameters) -> dict[str, ChurnHyperparameters]:
    """Return what the nested run chooses from: the recipe, and trees of other sizes at about equal effort."""
    trees = parameters.n_estimators
    sizes = {
        "stumps": (2, trees * 8 // 3),
        "3 leaves": (3, trees * 3 // 2),
        "8 leaves": (8, max(trees // 2, 1)),
    }
    other = {
        name: parameters.model_copy(update={"num_leaves": leaves, "n_estimators": number})
        for name, (leaves, number) in sizes.items()
    }
    return {"the recipe": parameters, **other}


def out_of_fold(frame: pd.DataFrame, label: str, folds: ChurnFolds, scorer: Scorer) -> np.ndarray:
    """Return for each row the score of the one model that was not fitted on it."""
    scores = np.full(len(frame), np.nan)
    for fit, unseen in fold_positions(frame, folds, label):
        scores[unseen] = scorer(frame.iloc[fit], frame.iloc[unseen])
    return scores


def fold_metrics(frame: pd.DataFrame, label: str, folds: ChurnFolds, scores: np.ndarray) -> dict[str, float]:
    """Return the mean over the folds of AUC ROC and average precision, as published figures are given."""
    labels = frame[label].to_numpy()
    parts = [unseen for _, unseen in fold_positions(frame, folds, label)]
    return {
        "auc_roc": float(np.mean([roc_auc_score(labels[part], scores[part]) for part in parts])),
        "average_precision": float(
            np.mean([average_precision_score(labels[part], scores[part]) for part in parts])
        ),
        "calibration_error": expected_calibration_error(labels, scores),
    }


@dataclass(frozen=True)
class Repeated:
    """Metrics of each repetition (other folds each time), and the scores of the first one."""

    metrics: list[dict[str, float]]
    scores: np.ndarray

    def mean(self, name: str) -> float:
        """Return a metric's mean over the repetitions."""
        return float(np.mean([repetition[name] for repetition in self.metrics]))

    def summary(self) -> dict[str, Any]:
        """Return mean, lowest and highest of each metric over the repetitions."""
        return {
            name: {
                "mean": self.mean(name),
                "lowest": min(repetition[name] for repetition in self.metrics),
                "highest": max(repetition[name] for repetition in self.metrics),
            }
            for name in self.metrics[0]
        }


def repeated(subject: Subject, scorer: Scorer, repeats: int, title: str) -> Repeated:
    """Cross-validate `repeats` times, each time with folds shuffled by another seed."""
    metrics, first = [], None
    for repeat in tqdm(range(repeats), desc=title, unit="repeat"):
        folds = subject.folds.model_copy(update={"shuffle_seed": subject.folds.shuffle_seed + repeat})
        scores = out_of_fold(subject.frame, subject.label, folds, scorer)
        metrics.append(fold_metrics(subject.frame, subject.label, folds, scores))
        first = scores if first is None else first
    assert first is not None
    return Repeated(metrics, first)


@dataclass(frozen=True)
class Nested:
    """Scores of rows that neither the fit nor the choice of hyperparameters saw, and what was chosen.

    `platt` and `isotonic` are the same scores after a calibrator fitted on the fit rows' own unseen scores.
    """

    metrics: dict[str, float]
    chosen: list[str]
    scores: np.ndarray
    platt: np.ndarray
    isotonic: np.ndarray


def nested(subject: Subject) -> Nested:
    """Choose hyperparameters and fit calibrators inside the fit rows of each fold, then score the rest."""
    frame, label, inner = subject.frame, subject.label, ChurnFolds(folds=5, shuffle_seed=100)
    options = candidates(subject.hyperparameters)
    scores, platt, isotonic = (np.full(len(frame), np.nan) for _ in range(3))
    chosen = []
    for fit, unseen in tqdm(fold_positions(frame, subject.folds, label), desc="nested", unit="fold"):
        rows = frame.iloc[fit].reset_index(drop=True)
        inside = {
            name: out_of_fold(rows, label, inner, subject.boosted(parameters))
            for name, parameters in options.items()
        }
        best = max(inside, key=lambda name: roc_auc_score(rows[label], inside[name]))
        chosen.append(best)
        scores[unseen] = subject.boosted(options[best])(rows, frame.iloc[unseen])
        platt[unseen] = platt_scaled(inside[best], rows[label].to_numpy(), scores[unseen])
        isotonic[unseen] = isotonic_scaled(inside[best], rows[label].to_numpy(), scores[unseen])
    return Nested(fold_metrics(frame, label, subject.folds, scores), chosen, scores, platt, isotonic)


def platt_scaled(known: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the scores through a line in log-odds that was fitted on other rows."""
    model = LogisticRegression(C=1e6).fit(_logit(known)[:, None], labels)
    return model.predict_proba(_logit(scores)[:, None])[:, 1]


def isotonic_scaled(known: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the scores through a rising step function that was fitted on other rows."""
    from sklearn.isotonic import IsotonicRegression

    return IsotonicRegression(out_of_bounds="clip").fit(known, labels).predict(scores)


def _logit(scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def intervals(
    labels: np.ndarray, scores: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict[str, list[float]]:
    """Return the central 95 % of bootstrap resamples of the rows, for each metric of the pooled scores.

    A resample's calibration error holds the noise of the draw too, so its interval lies a little high.
    """
    rng, ranking = np.random.default_rng(seed), Ranking.of(labels, scores)
    drawn = np.empty((resamples, 3))
    for resample in drawn:
        rows = rng.integers(0, len(labels), len(labels))
        weights = np.bincount(rows, minlength=len(labels))[None, :].astype(np.float64)
        resample[:2] = ranking.measures(weights)[0]
        resample[2] = expected_calibration_error(labels[rows], scores[rows])
    bounds = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    names = ("auc_roc", "average_precision", "calibration_error")
    return {name: bounds[:, i].tolist() for i, name in enumerate(names)}


@dataclass(frozen=True)
class Measured:
    """Everything a cross-validation found; `write` makes its report."""

    subject: Subject
    boosted: Repeated
    logistic: Repeated
    nested: Nested | None
    chosen: value.ChosenThresholds
    curve: value.ValueCurve
    resamples: int

    def write(self, folder: Path, title: str, *, targets: bool) -> None:
        """Write `cross_validation.json` and `.html`; `targets` are those of the Telco subscribers."""
        labels, unseen = self.subject.labels, self.boosted.scores
        paired = {
            name: vars(
                paired_bootstrap(
                    labels,
                    self.logistic.scores,
                    unseen,
                    np.arange(len(labels)),
                    METRICS[name],
                    resamples=self.resamples,
                )
            )
            for name in ("auc_roc", "average_precision")
        }
        content: dict[str, Any] = {
            "rows": len(labels),
            "positives": int(labels.sum()),
            "recipe": {**self.boosted.summary(), "interval_95": intervals(labels, unseen, self.resamples)},
            "logistic_regression": {
                **self.logistic.summary(),
                "interval_95": intervals(labels, self.logistic.scores, self.resamples),
            },
            "recipe_minus_logistic": paired,
            "thresholds": self.chosen.as_dict(),
            "value_per_1000": self.curve.summary(),
        }
        if self.nested is not None:
            content["nested"] = {**self.nested.metrics, "chosen_by_fold": self.nested.chosen}
            content["calibration_error"] = self._calibration()
        write_report(folder / "cross_validation.json", self._results(targets), **content)
        write_html(folder / "cross_validation.html", title, _tables(content), self._plots())

    def _calibration(self) -> dict[str, float]:
        """Return the calibration error of the nested scores as they are, and after each calibrator."""
        assert self.nested is not None
        kinds = {
            "as trained": self.nested.scores,
            "platt": self.nested.platt,
            "isotonic": self.nested.isotonic,
        }
        return {
            name: expected_calibration_error(self.subject.labels, scores) for name, scores in kinds.items()
        }

    def _results(self, targets: bool) -> list[dict[str, Any]]:
        wanted = {"auc_roc": AUC_TARGET, "average_precision": AP_TARGET} if targets else {}
        lines = [
            measurement(
                f"{self.subject.folds.folds}-fold {name}, mean of {len(self.boosted.metrics)} repetitions",
                self.boosted.mean(name),
                "ratio",
                target=wanted.get(name),
                peer="logistic regression",
                peer_value=self.logistic.mean(name),
            )
            for name in ("auc_roc", "average_precision")
        ]
        error = self.boosted.mean("calibration_error")
        line = measurement("calibration error (lower is better)", error, "ratio")
        if targets:
            line |= {"target": CALIBRATION_TARGET, "met": error <= CALIBRATION_TARGET}
        return [*lines, line]

    def _plots(self) -> dict[str, bytes]:
        labels = self.subject.labels
        series = {"the recipe": self.boosted.scores, "logistic regression": self.logistic.scores}
        drawn = {"reliability": plots.reliability(labels, series)}
        if self.nested is not None:
            drawn["calibrators"] = plots.reliability(
                labels,
                {
                    "nested, as trained": self.nested.scores,
                    "nested, Platt": self.nested.platt,
                    "nested, isotonic": self.nested.isotonic,
                },
            )
        drawn["value_curve"] = plots.value_curve(self.curve, self.chosen)
        return drawn


def measure(subject: Subject, repeats: int, *, with_nested: bool = True, resamples: int = 1000) -> Measured:
    """Cross-validate the recipe and the logistic regression in the same folds, and choose thresholds."""
    boosted = repeated(subject, subject.boosted(subject.hyperparameters), repeats, "LightGBM")
    logistic = repeated(subject, subject.logistic, repeats, "logistic regression")
    return Measured(
        subject=subject,
        boosted=boosted,
        logistic=logistic,
        nested=nested(subject) if with_nested else None,
        chosen=value.chosen_thresholds(boosted.scores, subject.labels, subject.values, resamples),
        curve=value.value_curve(boosted.scores, subject.labels, subject.values),
        resamples=resamples,
    )


def _tables(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Turn the report's content into the page's tables: one line a figure."""
    tables: dict[str, Mapping[str, Any]] = {
        "Rows": {"subscribers": content["rows"], "positives": content["positives"]}
    }
    for key, heading in {"recipe": "The recipe", "logistic_regression": "Logistic regression"}.items():
        part = content[key]
        tables[f"{heading}: mean of repetitions (lowest to highest), 95 % of resampled subscribers"] = {
            name: _line(part[name], part["interval_95"][name]) for name in part["interval_95"]
        }
    tables["The recipe minus logistic regression, pooled, 95 % of resampled subscribers"] = {
        name: f"{found['difference']:+.4f} ({found['lower']:+.4f} to {found['upper']:+.4f})"
        for name, found in content["recipe_minus_logistic"].items()
    }
    if "nested" in content:
        tables["Nested: hyperparameters chosen inside the fit rows of each fold"] = {
            name: ", ".join(part) if isinstance(part, list) else part
            for name, part in content["nested"].items()
        }
        tables["Calibration error of the nested scores, before and after a calibrator"] = content[
            "calibration_error"
        ]
    tables["Thresholds by expected value"] = {
        name: f"{part['threshold']:.3f} ({part['lower']:.3f} to {part['upper']:.3f}), "
        f"by the values alone {part['by_values']:.3f}"
        for name, part in content["thresholds"].items()
    }
    tables["Value in USD per 1,000 subscribers, beside doing nothing"] = content["value_per_1000"]
    return tables


def _line(part: Mapping[str, float], interval: Sequence[float]) -> str:
    spread = f"{part['lowest']:.4f} to {part['highest']:.4f}"
    return f"{part['mean']:.4f} ({spread}), 95 %: {interval[0]:.4f} to {interval[1]:.4f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m src.cross_validation", description=__doc__)
    parser.add_argument("--as-of", type=utc_time, help="labels known at this time (UTC); default: now")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions with other folds (%(default)s)")
    options = parser.parse_args(arguments)

    def work(settings: ChurnTrainingSettings) -> None:
        client = FeatureStoreClient(settings.feature_store_db)
        contract = client.contract(FEATURE_SERVICE)
        frame = load_labelled(client, contract, options.as_of or datetime.now(UTC))
        subject = Subject(
            frame, contract.service, LABEL, settings.hyperparameters, settings.values, settings.validation
        )
        measured = measure(subject, options.repeats)
        folder = settings.reports_dir / "churn"
        measured.write(folder, "Churn: cross-validation on all labelled subscribers", targets=True)
        for name, part in measured.boosted.summary().items():
            print(f"{name} {part['mean']:.4f} (logistic regression {measured.logistic.mean(name):.4f})")
        print(folder / "cross_validation.html")

    return run_command(ChurnTrainingSettings, work)


if __name__ == "__main__":
    sys.exit(main())
