"""Slice metrics against sklearn and hand-worked numbers; too few rows give no number."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from common_ml_utils.errors import EmptyWindowError, SchemaMismatchError
from common_ml_utils.evaluation_utils import Estimate, expected_calibration_error
from common_ml_utils.slices import ALL_ROWS, Disparity, SliceMetrics, slice_metrics, whole


def made_up(rows: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, scores that are their true probabilities, and groups of about four rows."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(1, 4, rows)
    return (rng.random(rows) < scores).astype(int), scores, rng.integers(0, rows // 4, rows)


def of(metrics: list[SliceMetrics], name: str) -> SliceMetrics:
    return next(m for m in metrics if m.name == name)


def test_the_figures_of_a_slice_are_those_of_its_rows() -> None:
    labels, scores, groups = made_up()
    mask = np.arange(len(labels)) % 3 == 0
    [all_rows, third] = slice_metrics(
        labels, scores, groups, {**whole(len(labels)), "third": mask}, threshold=0.4, resamples=60
    )
    assert all_rows.name == ALL_ROWS
    assert all_rows.disparity == Disparity(None, None, None)
    y, s = labels[mask], scores[mask]
    alert = s >= 0.4
    assert (third.rows, third.positives) == (len(y), y.sum())
    expected = {
        "auc_roc": roc_auc_score(y, s),
        "average_precision": average_precision_score(y, s),
        "alert_rate": alert.mean(),
        "false_positive_rate": alert[y == 0].mean(),
        "recall": alert[y == 1].mean(),
        "calibration_bias": s.mean() - y.mean(),
        "brier": np.mean((s - y) ** 2),
    }
    for name, value in expected.items():
        estimate = getattr(third, name)
        assert estimate.value == pytest.approx(value), name
        assert estimate.lower < value < estimate.upper, name
    assert third.calibration_error == pytest.approx(expected_calibration_error(y, s))
    rest_alert = scores[~mask] >= 0.4
    assert third.disparity.alert_rate is not None
    assert third.disparity.alert_rate.value == pytest.approx(alert.mean() / rest_alert.mean())
    assert third.note is None


def test_a_group_that_is_alerted_twice_as_often_is_uneven_and_an_even_one_is_not() -> None:
    labels, scores, groups = made_up()
    rng = np.random.default_rng(3)
    mask = rng.random(len(labels)) < 0.4
    shifted = np.where(mask, np.minimum(scores * 2, 1), scores)
    [even] = slice_metrics(labels, scores, groups, {"x": mask}, 0.3, resamples=60)
    [uneven] = slice_metrics(labels, shifted, groups, {"x": mask}, 0.3, resamples=60)
    assert even.disparity.uneven == {}
    assert list(uneven.disparity.uneven) == ["alert rate", "false positive rate", "recall"]
    assert uneven.calibration_bias is not None
    assert uneven.calibration_bias.lower > 0.05


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(40):
        labels, scores, groups = made_up(600, seed)
        [metrics] = slice_metrics(labels, scores, groups, whole(600), 0.5, resamples=100, seed=seed)
        assert metrics.calibration_bias is not None
        covered += metrics.calibration_bias.lower <= 0 <= metrics.calibration_bias.upper
    assert 33 <= covered <= 40


def test_rows_of_one_group_widen_the_interval() -> None:
    labels, scores, _ = made_up(800)
    alone = np.arange(800)
    labels, scores, people = (np.tile(column, 5) for column in (labels, scores, alone))
    [together] = slice_metrics(labels, scores, people, whole(4000), 0.4, resamples=100)
    [apart] = slice_metrics(labels, scores, np.arange(4000), whole(4000), 0.4, resamples=100)

    def width(metrics: SliceMetrics) -> float:
        assert metrics.alert_rate is not None
        return metrics.alert_rate.upper - metrics.alert_rate.lower

    assert width(together) > 1.7 * width(apart)  # sqrt(5) = 2.2


def test_few_rows_give_counts_and_a_note_but_no_number() -> None:
    labels, scores, groups = made_up()
    few = np.zeros(len(labels), dtype=bool)
    few[np.flatnonzero(labels == 1)[:5]] = True
    few[np.flatnonzero(labels == 0)[:30]] = True
    none = np.zeros(len(labels), dtype=bool)
    [small, empty] = slice_metrics(labels, scores, groups, {"few": few, "none": none}, 0.4, resamples=20)
    assert (small.rows, small.positives) == (35, 5)
    assert small.note == "too few to judge: 35 rows of 100, 5 positives of 20"
    for metrics in (small, empty):
        judged = (
            *(metrics.auc_roc, metrics.average_precision, metrics.recall, metrics.alert_rate, metrics.brier),
            *(metrics.false_positive_rate, metrics.calibration_error, metrics.calibration_bias),
        )
        assert judged == (None,) * 8
        assert metrics.disparity == Disparity(None, None, None)
    assert (empty.rows, empty.base_rate) == (0, None)


def test_rates_are_judged_where_only_positives_are_few() -> None:
    labels, scores, groups = made_up()
    mask = labels == 0
    mask[np.flatnonzero(labels == 1)[:3]] = True
    [metrics] = slice_metrics(labels, scores, groups, {"good": mask}, 0.4, resamples=20)
    assert metrics.alert_rate is not None
    assert metrics.false_positive_rate is not None
    assert (metrics.auc_roc, metrics.recall) == (None, None)
    assert metrics.note == "too few to judge: 3 positives of 20"


def test_the_same_seed_gives_the_same_figures_and_other_slices_do_not_change_them() -> None:
    labels, scores, groups = made_up(1000)
    mask = scores > 0.1
    both = slice_metrics(labels, scores, groups, {"a": mask, "b": ~mask}, 0.4, resamples=40)
    alone = slice_metrics(labels, scores, groups, {"a": mask}, 0.4, resamples=40)
    assert of(both, "a") == alone[0]


def test_a_ratio_to_nothing_is_not_judged() -> None:
    labels = np.tile([0, 1], 200)
    scores = np.concatenate([np.full(200, 0.9), np.full(200, 0.1)])
    mask = np.arange(400) < 200
    [metrics] = slice_metrics(labels, scores, np.arange(400), {"loud": mask}, 0.5, resamples=20)
    assert metrics.alert_rate == Estimate(1, 1, 1)
    assert metrics.disparity.alert_rate is None


@pytest.mark.parametrize("mask", [np.ones(3, dtype=bool), np.ones(1000), np.ones((1000, 1), dtype=bool)])
def test_a_mask_that_does_not_fit_the_rows_is_refused(mask: np.ndarray) -> None:
    labels, scores, groups = made_up(1000)
    with pytest.raises(SchemaMismatchError, match="slice 'odd'"):
        slice_metrics(labels, scores, groups, {"odd": mask}, 0.4)


def test_no_rows_are_an_empty_window() -> None:
    nothing = np.empty(0)
    with pytest.raises(EmptyWindowError):
        slice_metrics(nothing, nothing, nothing, {}, 0.4)
