"""The pages: structure, escaping, numbers for people, and what must not be on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm.evaluation.page.charts import _ticks, bars, lines
from ldm.evaluation.page.comparison import compare_results, comparison_page
from ldm.evaluation.page.evaluation import ImageRows, evaluation_page, headline_cards
from ldm.evaluation.page.html import number, page, sheet, strip, table
from tests.pages import Page


def classifier(model: str = "cnn", mean: float = 0.9, seeds: int = 2, honest: bool = True) -> dict[str, Any]:
    curve = [{"loss": 1.0 / (at + 1), "validation_accuracy": 0.5 + at / 10} for at in range(4)]
    run = {"best_epoch": 3, "epochs": 4, "curve": curve}
    return {
        "name": model.upper(),
        "model": model,
        "mean": mean,
        "deviation": 0.01,
        "honest": honest,
        "note": "epoch chosen on held-out samples",
        "results": [run] * seeds,
    }


def score(value: float, label: str, better: str = "lower", deviation: float | None = None) -> dict[str, Any]:
    return {"value": value, "label": label, "better": better, "deviation": deviation, "note": "1,000 samples"}


PRIVACY = {
    "statement": "(9.98, 1e-05)-differentially private",
    "private": True,
    "epsilon": {"pld": 9.98, "rdp": 10.9},
    "delta": 1e-5,
    "relation": "add or remove one",
    "record": "one image with its label",
    "rng": "secure",
    "steps": {"taken": 500, "planned": 500},
    "covered": ["checkpoints"],
    "not_covered": [],
    "public_data": ["glyphs"],
    "plan": {"noise_multiplier": 1.5, "max_grad_norm": 0.01, "sampling": "poisson", "sample_rate": 0.01},
    "trained_coordinates": 12345,
    "curve": [[1, 1.0], [500, 9.98]],
}


def result(**changes: Any) -> dict[str, Any]:
    return {
        "title": "<b>eps10</b> & more",
        "created": "2026-01-01 00:00 UTC",
        "samples": {
            "source": "a.pt",
            "count": 1000,
            "size": "32x32",
            "classes": {},
            "meta": {"seed": 3, "s": {"t": 1}},
        },
        "real": {"source": "ldm.data.mnist.MNISTTrain", "count": 60000, "size": "32x32", "classes": {}},
        "protocol": {
            "suite": "mnist",
            "policy": "32x32 pixels, clamped",
            "extractor": "inception",
            "weights": "abc",
            "resize": "bilinear 299",
            "quantize": True,
            "size": "32x32",
            "subset": {"limit": 10, "seed": 0, "samples": 10, "real": 10},
        },
        "scores": {"frechet": score(12.345, "FID"), "precision": score(0.7, "Precision", "higher", 0.01)},
        "per_class": [{"label": 0, "name": "0", "frechet": 20.5, "samples": 100, "real": 6000}],
        "downstream": {
            "test": "MNISTVal",
            "test_count": 10000,
            "protocol": "held-out",
            "settings": {"epochs": 50, "augment": []},
            "results": [classifier()],
        },
        "privacy": PRIVACY,
        "memorisation": None,
        "not_measured": {"inception_score": "not part of the suite mnist"},
        **changes,
    }


def images(count: int = 4, real: bool = False, side: int = 16) -> ImageRows:
    rows = {name: torch.rand(count, 1, side, side) * 2 - 1 for name in ("0", "1")}
    return ImageRows(rows, {"0": rows["0"]} if real else {}, left_out=3)


def test_page_is_whole_and_shows_what_was_measured() -> None:
    found = Page(evaluation_page(result(), images()))
    assert found.faults == [] and len(found.images) == 2
    for words in (
        "FID",
        "12.35",
        "0.7 ± 0.01",
        "90.0 %",
        "9.98",
        "not part of the suite mnist",
        "12,345",
        "bilinear 299",
    ):
        assert words in found.text, words
    assert "<b>eps10</b> & more" in found.text  # as text, not as markup
    assert "b" not in found.tags and "does not cover the numbers" in found.text
    assert found.text.count("3 further classes") == 1


def test_optional_parts_may_be_missing() -> None:
    bare = result(downstream=None, privacy=None, per_class=[], not_measured={}, scores={})
    found = Page(evaluation_page(bare, ImageRows({}, {})))
    assert found.faults == [] and found.images == [] and "Privacy" not in found.text and "svg" not in found.tags


def test_real_images_carry_a_warning_and_are_else_absent() -> None:
    shown = Page(evaluation_page(result(), images(real=True)))
    assert len(shown.images) == 3 and "must not be published" in shown.text
    assert "must not be published" not in Page(evaluation_page(result(), images())).text


def test_warnings_for_a_dishonest_protocol_and_a_broken_guarantee() -> None:
    dishonest = {**result()["downstream"], "results": [classifier(honest=False)]}
    assert "chosen on the real test images" in Page(evaluation_page(result(downstream=dishonest), images())).text
    broken = {**PRIVACY, "private": False, "statement": "NOT private: insecure_seed", "epsilon": {"pld": "infinite"}}
    cards = headline_cards(result(privacy=broken))
    assert cards[-1][1:] == ("infinite", "does not hold, see below")


def test_a_forced_comparison_is_marked() -> None:
    forced = result(protocol={**result()["protocol"], "forced": "one set was rounded"})
    assert "although one set was rounded" in Page(evaluation_page(forced, images())).text


def test_memorisation_is_marked_private() -> None:
    found = Page(
        evaluation_page(
            result(memorisation={"membership": {"auc": 0.51, "notes": ["a", "b"], "curve": [[0, 0], [1, 1]]}}),
            images(),
        )
    )
    assert found.faults == [] and "computed from the private images" in found.text and "0.51" in found.text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456, "0.1235"),
        (12.3456, "12.35"),
        (60000, "60,000"),
        (12345.6, "12,346"),
        (None, "–"),
        (0, "0"),
        (3.0, "3"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_small_images_are_enlarged_and_large_ones_are_not_kept_large() -> None:
    assert 'class="sharp"' in strip(torch.zeros(2, 3, 32, 32), "alt")
    large = sheet(torch.zeros(2, 3, 256, 256), 2)
    assert large.width < 270 and 'class="sharp"' not in strip(torch.zeros(2, 3, 256, 256), "alt")


def test_charts_describe_themselves_and_take_any_values() -> None:
    assert bars({}, "x") == "" and lines({"a": []}, "x", x="x", y="y") == ""
    for chart in (
        bars({"a<b": 3.0, "c": 0.0}, "Bars"),
        bars({"a": 0.0}, "Zero"),
        lines({"one": [(1, 2)]}, "One", x="x", y="y"),
        lines({"flat": [(0, 1), (5, 1)], "up": [(0, 0), (5, 9)]}, "Two", x="x", y="y", from_zero=True),
    ):
        assert Page(page("t", [chart])).faults == [] and "nan" not in chart
    assert "a&lt;b 3" in bars({"a<b": 3.0}, "Bars")


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0.0, 9.99), (30.6, 94.7), (-0.5, 0.5), (1e-4, 3e-4), (0, 12345)):
        ticks = _ticks(low, high)
        assert 3 <= len(ticks) <= 11 and low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9
    assert _ticks(0.0, 9.99) == [0, 2, 4, 6, 8]


def test_table_marks_cells_and_is_empty_without_rows() -> None:
    assert table(("a",), []) == ""
    found = table(("a", "b"), [("x", "1"), ("y", "2")], numbers=(1,), best=[(1, 1)])
    assert '<td class="number best">2 <small>best</small></td>' in found and found.count("scope=") == 4


def runs(**second: Any) -> dict[str, dict[str, Any]]:
    better = {"frechet": score(5.0, "FID"), "precision": score(0.6, "Precision", "higher")}
    other = {"scores": better, "privacy": {**PRIVACY, "epsilon": {"pld": 20.0}}, **second}
    return {"eps10": result(), "eps20": result(**other)}


def test_comparison_names_the_best_in_each_direction() -> None:
    compared = compare_results(runs())
    assert compared["scores"]["frechet"]["best"] == "eps20" and compared["scores"]["precision"]["best"] == "eps10"
    assert compared["scores"]["accuracy_cnn"]["runs"]["eps10"] == {"value": 0.9, "deviation": 0.01}
    assert compared["privacy"]["eps20"]["epsilon"] == 20.0 and compared["differences"] == {}
    image = sheet(torch.zeros(4, 1, 8, 8), 2)
    found = Page(comparison_page(compared, runs(), {"eps10": image}))
    assert found.faults == [] and len(found.images) == 1 and "Quality and privacy" in found.text


def test_quality_is_drawn_against_epsilon_only_where_epsilon_differs() -> None:
    close = runs(privacy={**PRIVACY, "epsilon": {"pld": 10.0}})
    assert "Quality and privacy" not in Page(comparison_page(compare_results(close), close, {})).text


def test_runs_measured_differently_have_no_best() -> None:
    unlike = runs(protocol={**result()["protocol"], "weights": "other", "policy": "other"})
    compared = compare_results(unlike)
    assert compared["differences"] == {"weights": {"eps10": "abc", "eps20": "other"}}
    assert all(entry["best"] is None for entry in compared["scores"].values())
    found = Page(comparison_page(compared, unlike, {}))
    assert (
        found.faults == []
        and "not measured alike (weights)" in found.text
        and "best" not in found.text.split("Scores")[1]
    )


def test_runs_without_a_score_or_a_card_are_shown_with_a_dash() -> None:
    compared = compare_results(runs(scores={"frechet": score(5.0, "FID")}, privacy=None, downstream=None))
    found = Page(comparison_page(compared, runs(privacy=None), {}))
    assert found.faults == [] and "–" in found.text and "no privacy card" in found.text
    assert compared["scores"]["precision"]["best"] is None
