"""A card says what was measured, on how many rows, and what can't be judged; it is safe to open."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from common_ml_utils.explanations import ReasonCodes
from common_ml_utils.model_card import (
    Card,
    CardText,
    ScoredRows,
    card_document,
    card_files,
    card_page,
    example_reasons,
    importance_of,
    measure_holdout,
    summary,
)
from common_ml_utils.release_bundle import ReleaseBundle
from common_ml_utils.training_report import run_note, training_page

TEXT = CardText(
    owner="parcels-team",
    purpose="Gives the probability that a <parcel> is lost.",
    intended_use=("Looking for parcels.",),
    not_for=("Blaming carriers.",),
    data="Made-up parcels.",
    fairness="Heavy parcels should be found as often.",
    limits=("Made up | all of it.",),
    rows="parcels",
    positives="losses",
    currency="EUR",
)
THRESHOLDS = {"look": 0.2, "stop": 0.6}


def make_card(bundle: ReleaseBundle, parcels: pd.DataFrame, *, shift: float = 0.0) -> Card:
    """Return the card of a bundle measured on parcels; `shift` is added to every score."""
    matrix = bundle.preprocessing.transform(parcels)
    scores = np.clip(bundle.model.scores(matrix) + shift, 0, 1)
    labels = parcels["lost"].to_numpy()
    codes = ReasonCodes(bundle.preprocessing.names, bundle.reason_codes)
    contributions = bundle.model.contributions(matrix)
    heavy = parcels["parcel_weight_kg"].to_numpy() > 6
    rows = ScoredRows(
        labels,
        scores,
        parcels["parcel_id"].to_numpy(),
        costs=np.column_stack([10.0 * labels, 1 + 2.0 * labels, 4.0 * (1 - labels)]),
        slices={"weight: heavy": heavy, "weight: light": ~heavy, "first seven": np.arange(len(labels)) < 7},
    )
    measures = measure_holdout(
        rows,
        THRESHOLDS,
        {"auc_roc": 0.9, "found_in_time": 0.5},
        importance_of(codes, bundle.preprocessing.names, contributions),
        example_reasons(codes, contributions, scores, THRESHOLDS),
    )
    return Card(
        text=TEXT,
        manifest=bundle.manifest,
        bundle_sha256=bundle.sha256,
        service=bundle.contract.service,
        reason_codes=bundle.reason_codes,
        label="lost",
        label_delay=timedelta(days=2),
        measures=measures,
        folds=[{"auc_roc": 0.8, "average_precision": 0.5, "brier": 0.1, "calibration_error": 0.02}] * 2,
        parameters={"depth": 3},
        raw_data="parcels:abc.dir",
        plots={"calibration": b"\x89PNG"},
    )


@pytest.fixture
def card(bundle: ReleaseBundle, parcels: pd.DataFrame) -> Card:
    return make_card(bundle, parcels)


def test_a_card_says_all_that_a_reader_must_know(card: Card) -> None:
    page = card_page(card).markdown()
    overall = card.measures.overall
    for expected in (
        "Owner: parcels-team",
        "Blaming carriers.",
        "2024-01-01 to 2024-01-07: 400 parcels",
        f"{overall.rows:,} parcels, {overall.positives:,} losses",
        "2 days after the event",
        "parcel_loss_v1: 3 features",
        "d" * 64,
        card.bundle_sha256,
        card.manifest.files[card.manifest.model_file],
        "abc",
        "parcels:abc.dir",
        "weight: heavy",
        "found in time",
        "depth 3",
        "EUR",
    ):
        assert expected in page, expected
    for feature in card.service.feature_names:
        assert feature in page
    for reason in card.reason_codes.values():
        assert reason.code in page


def test_every_figure_stands_beside_its_sample_size(card: Card) -> None:
    page = card_page(card).markdown()
    section = page[page.index("## How well it does") : page.index("## Thresholds")]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "metric" not in line][1:]
    assert len(rows) >= 6
    assert all(f"{card.measures.overall.rows:,} parcels" in row for row in rows)
    for part in card.measures.slices:
        line = next(line for line in page.splitlines() if line.startswith(f"| {part.name} |"))
        assert f"| {part.rows} | {part.positives} |" in line


def test_a_group_too_small_to_judge_has_a_note_and_no_figure(card: Card) -> None:
    page = card_page(card).markdown()
    [line, *_] = [line for line in page.splitlines() if line.startswith("| first seven |")]
    assert line.count("–") == 3  # rankings and calibration
    assert re.search(r"– means too few to judge: .*first seven \(7 rows of 100", page)


def test_scores_that_are_off_make_a_warning(bundle: ReleaseBundle, parcels: pd.DataFrame, card: Card) -> None:
    shifted = summary(make_card(bundle, parcels, shift=0.2))
    assert (summary(card).kind, shifted.kind) == ("good", "warning")
    assert any("above the observed rate" in line for line in shifted.lines)
    assert any("per 1,000 parcels" in line for line in shifted.lines)


def test_a_group_that_is_treated_unlike_the_rest_is_named(card: Card) -> None:
    heavy = next(part for part in card.measures.slices if part.name == "weight: heavy")
    assert "alert rate" in heavy.disparity.uneven
    assert re.search(r"weight: heavy: alert rate \d\.\d\d times theirs", card_page(card).markdown())


def test_the_card_is_safe_to_open_and_loads_nothing(card: Card) -> None:
    files = card_files(card)
    page = files["model_card/model_card.html"].decode()
    assert "a &lt;parcel&gt; is lost" in page
    assert not re.search(r"(src|href)=.?(http|//)|<script|@import|url\(", page)
    text = files["model_card/model_card.md"].decode()
    assert "a &lt;parcel&gt; is lost" in text
    assert "Made up \\| all of it." in text
    assert "(../plots/calibration.png)" in text


def test_the_json_is_the_card_without_its_pictures(card: Card) -> None:
    document = json.loads(card_files(replace(card, version=4))["model_card/model_card.json"])
    assert document == json.loads(json.dumps(card_document(replace(card, version=4))))
    assert document["model_version"] == 4
    assert document["features"] == card.service.feature_names
    assert document["measures"]["overall"]["rows"] == 400
    assert document["label_delay_days"] == 2


def test_a_project_without_words_gets_a_card_that_says_so(card: Card) -> None:
    page = card_page(replace(card, text=None)).markdown()
    assert "The project has not written this down" in page
    assert "400 rows" in page


def test_examples_explain_the_highest_the_borderline_and_the_median_score(card: Card) -> None:
    examples = {example.which: example for example in card.measures.examples}
    assert list(examples) == ["highest score", "just above stop", "just above look", "median score"]
    assert examples["highest score"].score >= examples["just above stop"].score >= 0.6
    assert 0.2 <= examples["just above look"].score <= examples["just above stop"].score
    assert examples["highest score"].reasons


def test_the_training_page_and_the_note_begin_with_the_result(card: Card) -> None:
    page = training_page(replace(card, version=4), {"fit": 1.25}).markdown()
    assert "version 4: the challenger" in page
    assert "fit 1.2 s" in page
    assert run_note(card).startswith("AUC ROC ")
    assert "losses" in run_note(card)
