"""Reports hold what readers rely on, and plots are images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common_ml_utils.pages import Block, Bullets, Facts, Links, Note, Page, Plots, Section, Table, Text
from common_ml_utils.plots import ShapSample, model_plots
from common_ml_utils.release_bundle import BundleContents
from common_ml_utils.reports import StepClock, measurement, write_html, write_report

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_report_says_what_ran_when_and_where(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    write_report(path, [measurement("auc", 0.9, "ratio", target=0.8, peer="them", peer_value=0.6)], extra=[1])
    report = json.loads(path.read_text())
    assert {"command", "date", "machine", "results", "peak_rss_mb"} <= set(report)
    assert report["extra"] == [1]
    assert report["results"] == [
        {
            "name": "auc",
            "value": 0.9,
            "unit": "ratio",
            "peer": "them",
            "peer_value": 0.6,
            "ratio": 1.5,
            "target": 0.8,
            "met": True,
        }
    ]
    assert not list(path.parent.glob("*.partial"))


def test_a_missed_target_is_said_and_no_target_is_not_met() -> None:
    assert measurement("auc", 0.7, "ratio", target=0.8)["met"] is False
    assert measurement("auc", 0.7, "ratio")["met"] is None


def test_nan_never_reaches_a_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path / "r.json", [], value=float("nan"))
    assert not (tmp_path / "r.json").exists()


def test_a_page_escapes_what_it_shows(tmp_path: Path) -> None:
    write_html(tmp_path / "r.html", "<title>", {"a & b": {"x<y": 1.23456}}, {"plot": PNG})
    page = (tmp_path / "r.html").read_text()
    assert "<h1>&lt;title&gt;</h1>" in page
    assert "a &amp; b" in page
    assert "http" not in page  # nothing is loaded from elsewhere
    assert "x&lt;y" in page
    assert "1.2346" in page
    assert "data:image/png;base64," in page


NASTY = '<script>alert("x")</script> a|b `c` *d* [e](f)'


def test_no_block_lets_markup_through() -> None:
    blocks: list[Block] = [
        Text(NASTY),
        Note("bad", [NASTY]),
        Bullets([NASTY]),
        Facts({NASTY: NASTY}),
        Table([NASTY], [[NASTY]]),
        Plots({"p": PNG}, {"p": NASTY}),
        Links({NASTY: 'x.html" onclick="alert(1)'}),
    ]
    page = Page(NASTY, NASTY, blocks, [Section(NASTY, [])], NASTY)
    document = page.html()
    assert "<script" not in document
    assert '" onclick' not in document
    text = page.markdown()
    assert "<script" not in text
    assert "a\\|b \\`c\\` \\*d\\* \\[e]" in text
    assert "a|b" not in text


def test_numbers_stand_to_the_right_and_text_to_the_left() -> None:
    table = Table(["name", "rows", "metric"], [["a", 1234, "0.9 (0.8 to 1.0)"], ["b", None, None]])
    assert table.markdown("plots").splitlines() == [
        "| name | rows | metric |",
        "| --- | --: | --: |",
        "| a | 1,234 | 0.9 (0.8 to 1.0) |",
        "| b | – | – |",
    ]
    assert "<td class=number>1,234</td>" in table.html()
    assert "<td class=short>a</td>" in table.html()


def test_markdown_names_the_images_that_html_embeds() -> None:
    plots = Plots({"score": PNG}, {"score": "Scores"})
    assert plots.markdown("../plots") == "![Scores](../plots/score.png)"
    assert 'alt="Scores" src="data:image/png;base64,' in plots.html()


def test_steps_are_timed_even_when_they_fail() -> None:
    clock = StepClock()
    with pytest.raises(KeyError), clock.step("load"):
        raise KeyError
    assert list(clock.seconds) == ["load"]


def test_every_plot_is_drawn_and_the_same_input_gives_the_same_bytes(contents: BundleContents) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = np.clip(labels * 0.4 + rng.random(60) * 0.6, 0, 1)
    matrix = np.column_stack([rng.random(60), rng.integers(0, 5, 60), np.full(60, np.nan)]).astype(float)
    sample = ShapSample(contents.preprocessing, matrix, contents.model.contributions(matrix))
    plots = model_plots(labels, scores, {"look": 0.3, "stop": 0.7}, sample)
    assert set(plots) == {
        "confusion_matrix_look",
        "confusion_matrix_stop",
        "precision_recall",
        "calibration",
        "shap_summary",
        "shap_dependence",
    }
    assert all(image.startswith(PNG) and len(image) > 5000 for image in plots.values())
    assert model_plots(labels, scores, {"look": 0.3, "stop": 0.7}, sample) == plots
