"""Ask how a subscriber's score would differ under another contract or other monthly charges.

`python -m src.what_if (--subscriber ID | --row JSON) [--contract two_year] [--monthly-charges X]`, with the
champion of the registry or `--bundle FOLDER`. What it shows is an association the model learned, not an
effect: subscribers with that contract and those charges leave so often, which does not say that a change
would make this one stay.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common_ml_utils.command_line import run_command, run_plain
from common_ml_utils.data_schemas.training_data_contract import typed_feature
from common_ml_utils.errors import DataError, RegistryError, SchemaMismatchError
from common_ml_utils.explanations import ReasonCodes
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import CHAMPION, ModelRegistry
from common_ml_utils.preprocessing import FeatureValue
from common_ml_utils.release_bundle import ReleaseBundle
from common_ml_utils.reports import write_html, write_report
from src import plots
from src.config import IDENTITY, ChurnTrainingSettings
from src.data_loader import KEY
from src.preprocessor import check_ranges

CONTRACT, CHARGES = "subscriber_contract", "subscriber_monthly_charges_usd"
GRID_POINTS = 61
MEANING = (
    "An association the model learned from subscribers as they are, not a causal effect: it does not say "
    "that this subscriber would stay if the contract or the charges were changed. All other features stay as "
    "they are; total charges too, as they are of the past."
)
Row = Mapping[str, FeatureValue]


@dataclass(frozen=True)
class Change:
    """What is asked for; None leaves a value as it is."""

    contract: str | None = None
    monthly_charges: float | None = None

    def applied(self, bundle: ReleaseBundle, row: Row) -> dict[str, FeatureValue] | None:
        """Return the changed row, None where nothing is asked for; a bad value is a DataError."""
        changed = dict(row)
        if self.contract is not None:
            changed[CONTRACT] = _category(bundle, CONTRACT, self.contract, "--contract")
        if self.monthly_charges is not None:
            if not (math.isfinite(self.monthly_charges) and self.monthly_charges >= 0):
                raise DataError(f"--monthly-charges {self.monthly_charges} is not an amount of 0 USD or more")
            changed[CHARGES] = self.monthly_charges
        return None if self == Change() else changed


@dataclass(frozen=True)
class Answer:
    """A row with its score, the highest threshold the score reaches and the reasons that raised it."""

    row: Row
    score: float
    reaches: str
    reasons: list[dict[str, Any]]


@dataclass(frozen=True)
class WhatIf:
    """The subscriber now and under the change, and the score over charges for each contract."""

    now: Answer
    changed: Answer | None
    charges: np.ndarray
    grid: Mapping[str, np.ndarray]
    remarks: list[str] = field(default_factory=list)


def what_if(bundle: ReleaseBundle, row: Row, change: Change) -> WhatIf:
    """Score a checked row now and under the change, and over the grid."""
    changed = change.applied(bundle, row)
    low, high = _usual_charges(bundle)
    asked = [_charges(row), _charges(changed or row)]
    charges = np.linspace(min([low, *asked]), max([high, *asked]), GRID_POINTS)
    grid = {}
    for contract in _categories(bundle, CONTRACT):
        rows = pd.DataFrame([{**row, CONTRACT: contract}] * GRID_POINTS).astype(object)
        grid[contract] = bundle.score_frame(rows.assign(**{CHARGES: charges}))
    remarks = [
        f"{value:g} USD a month is outside of {low:g} to {high:g}, where nine in ten subscribers are that "
        "the model learned from: there it only continues what it knows"
        for value in dict.fromkeys(asked)
        if not low <= value <= high
    ]
    return WhatIf(
        _answer(bundle, row), None if changed is None else _answer(bundle, changed), charges, grid, remarks
    )


def checked_row(bundle: ReleaseBundle, values: Mapping[str, Any]) -> dict[str, FeatureValue]:
    """Return the model's vector out of a row; raises SchemaMismatchError that names each bad feature."""
    known = {feature.name: feature for feature in bundle.contract.service.features}
    for needed in (CONTRACT, CHARGES):
        if needed not in known:
            raise SchemaMismatchError(f"the model has no feature {needed}: there is nothing to ask it")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SchemaMismatchError(f"not features of {bundle.contract.service.name}: {unknown}")
    frame = pd.DataFrame([{name: values.get(name) for name in known}], dtype=object)
    for name, feature in known.items():
        frame[name] = typed_feature(frame[name], feature)
    frame = check_ranges(frame)
    row = {name: None if pd.isna(frame[name][0]) else frame[name][0] for name in known}
    for name, value in row.items():
        if isinstance(value, str):
            row[name] = _category(bundle, name, value, name)
    if absent := [name for name in (CONTRACT, CHARGES) if row[name] is None]:
        raise SchemaMismatchError(f"what is to be changed is not known: {absent}")
    return row


def subscriber_row(client: FeatureStoreClient, bundle: ReleaseBundle, subscriber: int) -> dict[str, Any]:
    """Return a subscriber's newest profile; raises DataError where there is none."""
    rows = client.query(
        "SELECT * FROM features.fct_subscriber_profile WHERE subscriber_id = %s"
        " ORDER BY event_timestamp DESC, created_timestamp DESC LIMIT 1",
        [subscriber],
    )
    if not rows:
        raise DataError(f"features.fct_subscriber_profile has no {KEY} {subscriber}")
    return {name: rows[0].get(name) for name in bundle.contract.service.feature_names}


def read_row(text: str) -> dict[str, Any]:
    """Read a row given as JSON, or as the path of a JSON file; raises DataError."""
    try:
        content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        row = json.loads(content, parse_constant=_no_number)
    except (OSError, ValueError) as error:
        raise DataError(f"--row can't be read as JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError("--row must be an object of feature and value")
    return row


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def write(folder: Path, name: str, found: WhatIf, bundle: ReleaseBundle, model: str) -> Path:
    """Write `what_if-NAME.json`, `.png` and `.html`, and return the page's path."""
    before, after = found.now, found.changed
    title = f"Churn score of {name}, by contract and monthly charges"
    plot = plots.what_if(
        found.charges,
        found.grid,
        _point(before),
        None if after is None else _point(after),
        bundle.thresholds,
        title=title,
    )
    path = folder / f"what_if-{name}"
    write_report(
        path.with_suffix(".json"),
        [],
        meaning=MEANING,
        model=model,
        bundle_sha256=bundle.sha256,
        thresholds=bundle.thresholds,
        now=vars(before),
        changed=None if after is None else vars(after),
        difference=None if after is None else after.score - before.score,
        remarks=found.remarks,
        grid={
            "monthly_charges_usd": found.charges.tolist(),
            **{contract: line.tolist() for contract, line in found.grid.items()},
        },
    )
    path.with_suffix(".png").write_bytes(plot)
    tables: dict[str, Mapping[str, Any]] = {"What this is": {"meaning": MEANING, "model": model}}
    for heading, answer in (("Now", before), ("Under the change", after)):
        if answer is not None:
            tables[heading] = {
                "contract": answer.row[CONTRACT],
                "monthly charges, USD": answer.row[CHARGES],
                "score": answer.score,
                "reaches the threshold of": answer.reaches,
                **{reason["code"]: reason["text"] for reason in answer.reasons},
            }
    if found.remarks:
        tables["Remarks"] = {str(i): remark for i, remark in enumerate(found.remarks, start=1)}
    write_html(path.with_suffix(".html"), title, tables, {html.escape(title): plot})
    return path.with_suffix(".html")


def _point(answer: Answer) -> tuple[float, float]:
    return _charges(answer.row), answer.score


def _charges(row: Row) -> float:
    charges = row[CHARGES]
    assert isinstance(charges, int | float), "checked_row lets nothing else pass"
    return float(charges)


def _answer(bundle: ReleaseBundle, row: Row) -> Answer:
    score = bundle.score_row(row)
    contributions = bundle.model.contributions(bundle.preprocessing.transform_row(row))
    reasons = ReasonCodes(bundle.preprocessing.names, bundle.reason_codes).reasons(contributions)[0]
    reached = [name for name, threshold in bundle.thresholds.items() if score >= threshold]
    highest = max(reached, key=bundle.thresholds.__getitem__, default="none")
    return Answer(row, score, highest, [vars(reason) for reason in reasons])


def _categories(bundle: ReleaseBundle, name: str) -> tuple[str, ...]:
    [feature] = [feature for feature in bundle.preprocessing.features if feature.name == name]
    return feature.categories or ()


def _category(bundle: ReleaseBundle, name: str, asked: str, option: str) -> str:
    """Return the category that is meant: `two_year` is `Two year`; raises DataError with the choices."""
    choices = {_plain(category): category for category in _categories(bundle, name)}
    if _plain(asked) not in choices:
        raise DataError(f"{option} {asked!r} is none of {sorted(choices.values())}")
    return choices[_plain(asked)]


def _plain(text: str) -> str:
    return text.strip().lower().replace("_", " ").replace("-", " ")


def _usual_charges(bundle: ReleaseBundle) -> tuple[float, float]:
    """Return the lowest and highest bin edge of the training rows' charges: the middle nine tenths."""
    edges = bundle.reference[CHARGES]["edges"]
    if not edges:
        raise SchemaMismatchError(f"the bundle's reference has no edges for {CHARGES}")
    return float(edges[0]), float(edges[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m src.what_if", description=__doc__)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--subscriber", type=int, metavar="ID", help="a subscriber of the feature store")
    who.add_argument("--row", metavar="JSON", help="features as a JSON object, or a file that holds one")
    parser.add_argument("--contract", help="month_to_month, one_year or two_year")
    parser.add_argument("--monthly-charges", type=float, metavar="USD", help="monthly charges")
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="a bundle in place of the champion")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: REPORTS_DIR/churn")
    options = parser.parse_args(arguments)
    change = Change(options.contract, options.monthly_charges)

    def ask(bundle: ReleaseBundle, model: str, values: Mapping[str, Any], out: Path) -> None:
        name = "row" if options.subscriber is None else f"subscriber-{options.subscriber}"
        found = what_if(bundle, checked_row(bundle, values), change)
        page = write(out, name, found, bundle, model)
        print(f"now: {_sentence(found.now)}")
        if found.changed is not None:
            print(f"changed: {_sentence(found.changed)}")
        for remark in found.remarks:
            print(remark)
        print(f"{MEANING}\n{page}")

    def with_settings(settings: ChurnTrainingSettings) -> None:
        bundle, model = _bundle(options.bundle, settings)
        if options.subscriber is None:
            values = read_row(options.row)
        else:
            values = subscriber_row(FeatureStoreClient(settings.feature_store_db), bundle, options.subscriber)
        ask(bundle, model, values, options.out or settings.reports_dir / "churn")

    if options.bundle and options.row and options.out:  # then no platform is needed
        return run_plain(_alone(options.bundle, options.row, options.out, ask))
    return run_command(ChurnTrainingSettings, with_settings)


def _alone(bundle: Path, row: str, out: Path, ask: Callable[..., None]) -> Callable[[], None]:
    return lambda: ask(ReleaseBundle.load(bundle), f"the bundle in {bundle}", read_row(row), out)


def _bundle(folder: Path | None, settings: ChurnTrainingSettings) -> tuple[ReleaseBundle, str]:
    """Return the bundle of the folder, else the champion's, and what to call it."""
    if folder is not None:
        return ReleaseBundle.load(folder), f"the bundle in {folder}"
    champion = ModelRegistry(settings.mlflow_tracking_uri).load(IDENTITY.model_name, CHAMPION)
    if champion is None:
        raise RegistryError(f"{IDENTITY.model_name} has no {CHAMPION}: train and gate one, or name --bundle")
    return champion.bundle, f"{champion.model_name} version {champion.version}"


def _sentence(answer: Answer) -> str:
    reasons = ", ".join(reason["code"] for reason in answer.reasons) or "nothing raised it"
    return (
        f"{answer.row[CONTRACT]}, {_charges(answer.row):g} USD a month: score {answer.score:.3f}, "
        f"reaches the threshold of {answer.reaches} ({reasons})"
    )


if __name__ == "__main__":
    sys.exit(main())
