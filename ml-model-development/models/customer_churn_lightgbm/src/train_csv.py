"""Train on any labelled CSV file by configuration alone: `python -m src.train_csv --schema S --csv FILE`.

The recipe is the churn model's own: folds, thresholds by expected value, bundle and card, and the
cross-validation beside a logistic regression. The bundle and its reports land in one folder, whole or not at
all; nothing is registered. The schema is described in docs/churn.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic_settings import BaseSettings

from common_ml_utils.base_model_trainer import BaseModelTrainer, ModelIdentity, TrainingData
from common_ml_utils.command_line import run_plain
from common_ml_utils.data_schemas.training_data_contract import TrainingDataContract
from common_ml_utils.errors import DataError
from common_ml_utils.mlflow_utils import ModelRegistry, RegisterableBundle, TrainingRun
from common_ml_utils.model_card import CardText
from common_ml_utils.native_models import LightGBMModel
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.release_bundle import ReasonCode, TrainingInterval
from common_ml_utils.slices import Slices
from common_ml_utils.training_sets import data_version
from src import cross_validation
from src.config import IDENTITY
from src.csv_schema import CsvSchema, file_sha256, read_csv, read_schema
from src.data_loader import LABEL, split_holdout, stratified_folds
from src.train import churn_action_costs, fit_lightgbm

BUNDLE = "bundle"
DONE = "train.json"


class CsvSettings(BaseSettings):
    """Where reports go when `--out` is not given."""

    reports_dir: Path = Field(Path(), validation_alias="REPORTS_DIR")


class FolderRegistry(ModelRegistry):
    """A registry that is one folder: the bundle and what its run would record."""

    def __init__(self, folder: Path, version: int) -> None:
        super().__init__(folder.as_uri())
        self.folder = folder
        self._version = version

    def check_reachable(self) -> None:
        """Answer always: the folder was made for this training."""

    def register(self, bundle_folder: Path, bundle: RegisterableBundle, run: TrainingRun) -> int:
        """Keep the bundle and return the schema's version; plots and card are written by the trainer."""
        shutil.copytree(bundle_folder, self.folder / BUNDLE)
        return self._version


class CsvTrainer(BaseModelTrainer):
    """The churn recipe on the rows of a file."""

    def __init__(self, schema: CsvSchema, csv: Path, folder: Path) -> None:
        self.identity = ModelIdentity(
            model_name=f"{schema.name.replace('_', '-')}-model",
            experiment=schema.name,
            report=schema.name,
            thresholds=IDENTITY.thresholds,
        )
        parameters = {**schema.hyperparameters.model_dump(), **schema.validation.model_dump()}
        super().__init__(FolderRegistry(folder, schema.version), folder, folder, parameters)
        self.reports_dir = folder
        self.schema = schema
        self.csv = csv

    def load(self) -> TrainingData:
        """Read and check the file, hold a share out by the hash of the key, and cut the rest into folds."""
        schema, contract = self.schema, self.schema.contract()
        shape = TrainingDataContract(service=contract.service, key=schema.key_name, label=LABEL)
        labelled = shape.validate_frame(read_csv(self.csv, schema))
        training, holdout = split_holdout(labelled, schema.key_name)
        return TrainingData(
            contract=contract,
            labelled=labelled,
            training=training,
            folds=stratified_folds(training, schema.validation),
            holdout=holdout,
            interval=TrainingInterval(
                start=schema.snapshot,
                end=schema.snapshot,
                holdout_start=schema.snapshot,
                holdout_end=schema.snapshot,
                rows=len(training),
                positives=int(training[LABEL].sum()),
            ),
            label=LABEL,
            label_policy_version=f"{schema.label_delay_days} days",
            data_version=data_version(file_sha256(self.csv), contract.sha256, labelled),
        )

    def fit(self, preprocessing: Preprocessing, frame: pd.DataFrame) -> LightGBMModel:
        """Fit the boosted trees."""
        return fit_lightgbm(preprocessing, frame, frame[LABEL].to_numpy(), self.schema.hyperparameters)

    def action_costs(self, frame: pd.DataFrame) -> np.ndarray:
        """Return what doing nothing, contacting and making an offer cost."""
        return churn_action_costs(frame[LABEL].to_numpy(), self.schema.values)

    def slices(self, frame: pd.DataFrame) -> Slices:
        """Return a slice for each value of the features that the schema names."""
        return {
            f"{name}: {value}": (frame[name] == value).to_numpy(bool)
            for name in self.schema.slices
            for value in sorted(frame[name].dropna().unique())
        }

    def reason_codes(self, features: Sequence[str]) -> dict[str, ReasonCode]:
        """Return the schema's reason codes."""
        return {feature.feature: feature.reason_code for feature in self.schema.features}

    def card(self) -> CardText:
        """Return the schema's words."""
        words = self.schema.card
        return CardText(
            owner=words.owner,
            purpose=words.purpose,
            intended_use=("Choosing whom to contact and whom to make an offer, by the thresholds below.",),
            not_for=(
                "Telling why someone leaves: reason codes say what moved the score, not what caused it.",
            ),
            data=words.data,
            fairness="The groups below are those that the schema names.",
            limits=words.limits,
            rows=f"{self.schema.entity}s",
            positives=f"{self.schema.entity}s who left",
        )


def train_csv(schema: CsvSchema, csv: Path, out: Path, repeats: int = 3, resamples: int = 1000) -> None:
    """Train, measure and write `out`; an earlier result there is replaced once all is done."""
    with whole_folder(out) as folder:
        trainer = CsvTrainer(schema, csv, folder)
        trainer.train()
        shutil.rmtree(folder / "training_sets")  # the CSV file is the training set
        data = trainer.load()
        subject = cross_validation.Subject(
            data.labelled,
            data.contract.service,
            LABEL,
            schema.hyperparameters,
            schema.values,
            schema.validation,
        )
        measured = cross_validation.measure(subject, repeats, with_nested=False, resamples=resamples)
        measured.write(folder, f"{schema.name}: cross-validation on all rows", targets=False)
    for name, part in measured.boosted.summary().items():
        print(f"{name} {part['mean']:.4f} (logistic regression {measured.logistic.mean(name):.4f})")
    print(out / "train.html")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write in, and put it in the place of `out` when the block ends without an error.

    Raises DataError where `out` holds something that is no earlier result.
    """
    if out.exists() and not (out / DONE).exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} holds something else than a training's result: name another --out")
    draft = out.parent / f".{out.name}.{os.getpid()}"
    old = out.parent / f".{out.name}.{os.getpid()}.old"
    draft.mkdir(parents=True)
    try:
        yield draft.resolve()
        if out.exists():
            out.replace(old)
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m src.train_csv", description=__doc__)
    parser.add_argument("--schema", type=Path, required=True, metavar="YAML", help="what is in the file")
    parser.add_argument(
        "--csv", type=Path, required=True, metavar="FILE", help="CSV with a header, or .csv.gz"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: REPORTS_DIR/churn-<schema's name>")
    parser.add_argument("--repeats", type=int, default=3, help="of the cross-validation (%(default)s)")
    options = parser.parse_args(arguments)

    def work() -> None:
        schema = read_schema(options.schema)
        out = options.out or CsvSettings().reports_dir / f"churn-{schema.name}"
        train_csv(schema, options.csv, out, options.repeats)

    return run_plain(work)


if __name__ == "__main__":
    sys.exit(main())
