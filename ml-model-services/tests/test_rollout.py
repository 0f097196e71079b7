"""Who gets the canary, what is counted, and what is made of it."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_testkit import fraud_bundle, write_bundle

from common_service_libs.errors import BundleError
from common_service_libs.model_registry import ModelVersion
from common_service_libs.rollout import __main__ as command
from common_service_libs.rollout.choice import position, salt_of, share_in
from common_service_libs.rollout.notes import Notes, Part, Reference
from common_service_libs.rollout.trial import BundleTrial
from common_service_libs.rollout.verdict import Finding, Limits, Report, Verdict, judge_canary, psi
from common_service_libs.rollout.window import (
    DEFAULT_EDGES,
    SLICE_SECONDS,
    Counts,
    Slice,
    Summary,
    Window,
    latency_bucket,
    score_bins,
    summary,
)

SALT = salt_of("a" * 64)
NAME = "fraud-detection-model"


# --- who gets the canary ----------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(min_value=0), st.floats(0, 1), st.floats(0, 1))
def test_growing_the_share_only_adds_entities(entity: int, share: float, more: float) -> None:
    small, large = sorted((share, more))
    if position(SALT, entity) < small:
        assert position(SALT, entity) < large


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_as_many_entities_get_the_canary_as_the_share_says(share: float) -> None:
    entities = 20_000
    chosen = sum(position(SALT, entity) < share for entity in range(entities))
    spread = math.sqrt(entities * share * (1 - share))
    assert abs(chosen - entities * share) < 4 * spread


def test_another_rollout_begins_with_other_entities() -> None:
    first = {entity for entity in range(5000) if position(SALT, entity) < 0.1}
    second = {entity for entity in range(5000) if position(salt_of("b" * 64), entity) < 0.1}
    assert 20 < len(first & second) < 90  # 50 are expected by chance


def test_keys_of_two_types_are_two_entities_and_every_position_is_in_range() -> None:
    assert position(SALT, 7) != position(SALT, "7")
    assert all(0 <= position(SALT, entity) < 1 for entity in ("", "é" * 1000, 2**63, -1))


@pytest.mark.parametrize("text", ["-0.1", "1.01", "nan", "inf", "a tenth", ""])
def test_a_share_is_a_number_from_0_to_1(text: str) -> None:
    with pytest.raises(ValueError, match=r"share|float"):
        share_in(text)


# --- what is counted --------------------------------------------------------------------------------


def seen(window: Window, variant: str, now: float, **changes: Any) -> None:
    given: dict[str, Any] = {
        "decision": "approve", "score": 0.05, "latency_ms": 1.0, "degraded": False, "incomplete": False,
    } | changes  # fmt: skip
    window.decided(variant, now, **given)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["champion", "canary"]), st.floats(0.001, 10_000)), max_size=40))
def test_windows_of_several_processes_add_up_to_the_window_of_one(
    requests: list[tuple[str, float]],
) -> None:
    one, parts = Window(600), [Window(600), Window(600)]
    for number, (variant, latency) in enumerate(requests):
        for window in (one, parts[number % 2]):
            seen(window, variant, 1000.0 + number, latency_ms=latency, score=latency / 10_000)
    together = summary((piece for window in parts for piece in window.slices), 0)
    assert together == summary(one.slices, 0)


@settings(deadline=None)
@given(st.lists(st.floats(0.011, 60_000), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_of_latency_is_right_to_a_tenth(latencies: list[float], quantile: float) -> None:
    window = Window(600)
    for latency in latencies:
        seen(window, "canary", 1000.0, latency_ms=latency)
    exact = float(np.quantile(latencies, quantile, method="inverted_cdf"))
    found = window.slices[0].variants["canary"].latency_ms(quantile)
    assert found is not None
    assert exact * 0.999 <= found <= exact * 1.102


def test_what_is_older_than_the_window_is_forgotten() -> None:
    window = Window(60)
    for second in range(0, 600, 10):
        seen(window, "champion", float(second))
    assert window.slices[0].start >= 590 - 60 - 2 * SLICE_SECONDS
    total = summary(window.slices, 590 - 60)
    assert 4 <= total.variants["champion"].requests <= 7


@pytest.mark.parametrize(
    "reference",
    [
        {},
        {"score": None},
        {"score": {"edges": [0.5], "counts": [1]}},
        {"score": {"edges": [0.5, 0.1], "counts": [1, 1, 1]}},
        {"score": {"edges": [0.5], "counts": [0, 0]}},
    ],
)
def test_reference_statistics_without_scores_are_none(reference: dict[str, Any]) -> None:
    assert score_bins(reference) is None


# --- the verdict ------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)


def behaviour(
    requests: int,
    *,
    alerts: float = 0.03,
    errors: int = 0,
    degraded: float = 0.0,
    latency: float = 1.0,
    scores: tuple[float, float] = (0.5, 8.0),
) -> Counts:
    """Return what a variant did in so many requests; shares are exact, scores and latencies are drawn."""
    reviews = round(alerts * requests)
    bins = np.searchsorted(DEFAULT_EDGES, RNG.beta(*scores, requests), side="right")
    milliseconds = latency * RNG.lognormal(0, 0.3, requests)
    return Counts(
        requests=requests,
        errors=errors,
        degraded=round(degraded * requests),
        decisions={"review": reviews, "approve": requests - reviews},
        latencies=dict(Counter(map(latency_bucket, milliseconds.tolist()))),
        scores=dict(Counter(bins.tolist())),
    )


def verdict(canary: Counts, champion: Counts, **options: Any) -> Report:
    return judge_canary(Summary({"canary": canary, "champion": champion}), mildest="approve", **options)


def finding(report: Report, name: str) -> Finding:
    return next(check.finding for check in report.checks if check.name == name)


def test_a_canary_like_the_champion_is_ready_once_it_was_seen_often_enough() -> None:
    assert verdict(behaviour(2500), behaviour(20_000)).verdict is Verdict.PROMOTE_READY
    few = verdict(behaviour(500), behaviour(20_000))
    assert few.verdict is Verdict.CONTINUE
    assert "2000 requests" in few.reason
    assert verdict(behaviour(50), behaviour(20_000)).reason.startswith("not enough requests")


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("share of alerts", {"alerts": 0.2}),
        ("share of alerts", {"alerts": 0.0}),
        ("degraded", {"degraded": 0.2}),
        ("latency p99", {"latency": 12.0}),
        ("score drift", {"scores": (8.0, 2.0)}),
    ],
)
def test_a_canary_that_does_harm_is_stopped_and_the_verdict_names_why(
    check: str, changes: dict[str, Any]
) -> None:
    champion = behaviour(5000, alerts=0.08)
    report = verdict(behaviour(800, **({"alerts": 0.08} | changes)), champion)
    assert report.verdict is Verdict.ABORT
    assert finding(report, check) is Finding.ABORT
    assert check in report.reason
    others = [c.name for c in report.checks if c.finding is not Finding.PASS and c.name != check]
    assert [name for name in others if not name.startswith("share of")] == []


def test_errors_stop_a_canary_before_there_are_many_requests() -> None:
    report = verdict(behaviour(40, errors=8), behaviour(2000))
    assert report.verdict is Verdict.ABORT
    assert verdict(behaviour(40, errors=2), behaviour(2000)).verdict is Verdict.CONTINUE
    both_suffer = verdict(behaviour(100, errors=20), behaviour(1000, errors=200))
    assert both_suffer.verdict is Verdict.CONTINUE


def test_a_canary_is_seldom_stopped_by_chance() -> None:
    verdicts = [verdict(behaviour(300), behaviour(3000)).verdict for _ in range(60)]
    assert Verdict.ABORT not in verdicts


def test_a_better_model_may_score_otherwise_if_it_scores_as_in_training() -> None:
    canary = behaviour(3000, scores=(2.0, 8.0))
    trained = behaviour(20_000, scores=(2.0, 8.0)).scores
    reference = [trained.get(at, 0) for at in range(13)]
    champion = behaviour(10_000)
    assert finding(verdict(canary, champion), "score drift") is Finding.ABORT
    assert finding(verdict(canary, champion, reference=reference), "score drift") is Finding.PASS


def test_a_shadow_that_disagrees_counts_only_if_it_is_the_canary() -> None:
    both = Summary({"canary": behaviour(2500), "champion": behaviour(5000)})
    both.shadow.scored, both.shadow.agreed = 1000, 500
    assert judge_canary(both, mildest="approve").verdict is Verdict.PROMOTE_READY
    assert judge_canary(both, mildest="approve", shadow_is_canary=True).verdict is Verdict.ABORT


def test_what_is_significant_but_small_does_not_count() -> None:
    report = verdict(behaviour(30_000, alerts=0.034), behaviour(200_000, alerts=0.03), limits=Limits())
    assert finding(report, "share of alerts") is Finding.PASS


def test_what_is_large_but_may_be_chance_does_not_count_either() -> None:
    canary, champion = (
        behaviour(200, alerts=0.05, degraded=0.03),
        behaviour(200, alerts=0.015, degraded=0.005),
    )
    report = verdict(canary, champion)
    assert {finding(report, name) for name in ("degraded", "share of alerts")} == {Finding.PASS}
    many = verdict(behaviour(5000, degraded=0.03), behaviour(5000, degraded=0.005))
    assert finding(many, "degraded") is Finding.ABORT


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 9), st.integers(1, 500), min_size=1))
def test_a_distribution_is_stable_against_itself(counts: dict[int, int]) -> None:
    assert psi(counts, counts) == 0


# --- what processes tell each other -----------------------------------------------------------------


def part(window: Window, canary: int = 2) -> Part:
    return Part(
        service="fraud_detection_api", updated_at=time.time(), champion=Reference(1, "a" * 64),
        canary=Reference(canary, "b" * 64), shadow=None, share=0.1, aborted=False, slices=window.slices,
        mildest="approve",
    )  # fmt: skip


def test_the_command_adds_up_what_all_processes_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPOOL_DIR", str(tmp_path))
    folder = tmp_path / "fraud_detection_api" / "rollout"
    folder.mkdir(parents=True)
    for process in (11, 12):
        window = Window(600)
        for number in range(150):
            seen(window, "canary" if number % 2 else "champion", time.time())
        (folder / f"window-{process}.json").write_bytes(msgspec.json.encode(part(window)))
    assert command.main(["verdict", "--service", "fraud_detection_api"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    assert (report["canary_requests"], report["champion_requests"]) == (150, 150)
    assert command.main(["status", "--service", "fraud_detection_api"]) == 0
    status = msgspec.json.decode(capsys.readouterr().out)
    assert (status["processes"], status["share"], status["aborted"]) == (2, 0.1, None)
    assert status["verdict"] == report["verdict"] == "continue"
    assert command.main(["status", "--service", "another"]) == 1
    assert "no rollout of another" in capsys.readouterr().err


def test_what_nobody_says_any_more_is_removed_and_damage_is_no_verdict(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    old = part(Window(600))
    old.updated_at = time.time() - 4000
    (tmp_path / "window-1.json").write_bytes(msgspec.json.encode(old))
    (tmp_path / "window-2.json").write_bytes(b'{"slices": ')
    notes.write(msgspec.json.encode(part(Window(600))))
    assert len(notes.read(time.time() - 1800)) == 1
    assert not (tmp_path / "window-1.json").exists()
    (tmp_path / "aborted.json").write_bytes(b"[")
    assert notes.aborted() is None
    notes.abort(2, "b" * 64, "errors")
    stopped = notes.aborted()
    assert stopped is not None
    assert (stopped.version, stopped.reason) == (2, "errors")
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_slices_survive_json() -> None:
    window = Window(600)
    seen(window, "canary", 5.0)
    assert msgspec.json.decode(msgspec.json.encode(window.slices), type=list[Slice]) == window.slices


# --- the trial of a bundle --------------------------------------------------------------------------


def test_a_trial_tells_a_good_bundle_from_those_that_cannot_be_loaded(
    tmp_path: Path, bundle_folder: Path
) -> None:
    trial = BundleTrial("fraud_detection_v1", deadline=20)
    try:
        sha256 = fraud_bundle(tmp_path / "good")
        trial.run(tmp_path / "good", ModelVersion(NAME, 1, sha256))
        wrong = [{"features": row["features"], "score": 0.123} for row in _golden(tmp_path / "good")]
        sha256 = fraud_bundle(tmp_path / "wrong", tamper={"golden.json": wrong})
        with pytest.raises(BundleError, match="golden row"):
            trial.run(tmp_path / "wrong", ModelVersion(NAME, 2, sha256))
        with pytest.raises(BundleError, match="cannot be read"):
            trial.run(tmp_path / "nowhere", ModelVersion(NAME, 3, "0" * 64))
        sha256 = _truncated(tmp_path / "good", tmp_path / "truncated")
        with pytest.raises(BundleError, match="not an XGBoost model"):
            trial.run(tmp_path / "truncated", ModelVersion(NAME, 4, sha256))
    finally:
        trial.close()


def _golden(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = msgspec.json.decode((folder / "golden.json").read_bytes())
    return rows


def _truncated(source: Path, folder: Path) -> str:
    """Write a bundle whose model was cut short before its hash was taken."""
    contents = {path.name: path.read_bytes() for path in source.iterdir() if path.name != "manifest.json"}
    contents["model.ubj"] = contents["model.ubj"][: len(contents["model.ubj"]) // 2]
    return write_bundle(folder, contents, NAME, "xgboost", "model.ubj", "fraud_detection_v1")


def test_a_bundle_that_kills_or_holds_up_its_process_is_refused_and_the_next_one_is_tried(
    tmp_path: Path,
) -> None:
    sha256 = fraud_bundle(tmp_path / "good")
    version = ModelVersion(NAME, 1, sha256)
    trial = BundleTrial("fraud_detection_v1", deadline=20)
    try:
        trial.run(tmp_path / "good", version)
        _stop_helper(trial, dies=True)
        with pytest.raises(BundleError, match="SIGSEGV"):
            trial.run(tmp_path / "good", version)
        trial.run(tmp_path / "good", version)
        _stop_helper(trial, dies=False)
        trial._deadline = 0.3
        with pytest.raises(BundleError, match="no answer within"):
            trial.run(tmp_path / "good", version)
        trial._deadline = 20
        trial.run(tmp_path / "good", version)
        trial.give_up()
        with pytest.raises(OSError, match="given up"):
            trial.run(tmp_path / "good", version)
    finally:
        trial.close()


def _stop_helper(trial: BundleTrial, *, dies: bool) -> None:
    """Hold up the helper's process; or let it die of a bad address in a moment, while it is asked."""
    helper = trial._process
    assert helper is not None
    os.kill(helper.pid, signal.SIGSTOP)
    if dies:
        threading.Timer(
            0.1, lambda: [os.kill(helper.pid, s) for s in (signal.SIGSEGV, signal.SIGCONT)]
        ).start()
