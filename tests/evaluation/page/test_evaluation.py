"""The pages: structure, escaping, numbers for people, and what must not be on them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from ldm.evaluation.page.charts import _ticks, bars, lines
from ldm.evaluation.page.comparison import Cell, compare_results, comparison_page
from ldm.evaluation.page.evaluation import ImageRows, evaluation_page, headline_cards
from ldm.evaluation.page.images import sheet, strip
from ldm.evaluation.page.render import ENVIRONMENT, hide_folders, number
from ldm.evaluation.result import (
    CHANCE,
    PUBLIC,
    REAL,
    ClassRow,
    Downstream,
    DownstreamRow,
    EpochRow,
    EvaluationResult,
    GeneratedSet,
    ImageSet,
    MeasuringProtocol,
    PrivacySummary,
    ScoreRow,
    Steps,
    SubsetSizes,
    TrainingRow,
)
from tests.pages import Page


def classifier(model: str = "cnn", mean: float = 0.9, seeds: int = 2, **changes: Any) -> DownstreamRow:
    curve = tuple(EpochRow(1.0 / (at + 1), 0.5 + at / 10) for at in range(4))
    row = DownstreamRow(
        name=model.upper(),
        model=model,
        mean=mean,
        deviation=0.01,
        results=(TrainingRow(best_epoch=3, epochs=4, curve=curve),) * seeds,
        note="epoch chosen on held-out samples",
    )
    return replace(row, **changes)


def score(value: float, label: str, better: str = "lower", deviation: float | None = None) -> ScoreRow:
    return ScoreRow(value, label, better, deviation, "1,000 samples")


PRIVACY = PrivacySummary(
    statement="(9.98, 1e-05)-differentially private",
    private=True,
    epsilon={"pld": 9.98, "rdp": 10.9},
    delta=1e-5,
    relation="add_or_remove_one",
    record="one image with its label",
    rng="secure",
    steps=Steps(500, 500),
    covered=("checkpoints",),
    not_covered=(),
    public_data=("glyphs",),
    plan={"noise_multiplier": 1.5, "max_grad_norm": 0.01, "sampling": "poisson", "sample_rate": 0.01},
    trained_coordinates=12345,
    curve=((1, 1.0), (500, 9.98)),
)
PROTOCOL = MeasuringProtocol(
    suite="mnist",
    policy="32x32 pixels, clamped",
    extractor="inception",
    weights="abc",
    resize="bilinear 299",
    quantize=True,
    size="32x32",
    subset=SubsetSizes(limit=10, seed=0, samples=10, real=10),
)
DOWNSTREAM = Downstream("MNISTVal", 10000, "held-out", {"epochs": 50, "augment": []}, (classifier(),))


def result(**changes: Any) -> EvaluationResult:
    whole = EvaluationResult(
        title="<b>eps10</b> & more",
        created="2026-01-01 00:00 UTC",
        samples=GeneratedSet("a.pt", 1000, "32x32", meta={"seed": 3, "s": {"t": 1}}),
        real=ImageSet("ldm.data.mnist.MNISTTrain", 60000, "32x32"),
        protocol=PROTOCOL,
        scores={"frechet": score(12.345, "FID"), "precision": score(0.7, "Precision", "higher", 0.01)},
        per_class=(ClassRow(0, "0", 20.5, 100, 6000),),
        downstream=DOWNSTREAM,
        privacy=PRIVACY,
        not_measured={"inception_score": "not part of the suite mnist"},
    )
    return replace(whole, **changes)


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
    bare = result(downstream=None, privacy=None, per_class=(), not_measured={}, scores={})
    found = Page(evaluation_page(bare, ImageRows({}, {})))
    assert found.faults == [] and found.images == [] and "Privacy" not in found.text and "svg" not in found.tags


def test_real_images_carry_a_warning_and_are_else_absent() -> None:
    shown = Page(evaluation_page(result(), images(real=True)))
    assert len(shown.images) == 3 and "must not be published" in shown.text
    assert "must not be published" not in Page(evaluation_page(result(), images())).text


def test_warnings_for_a_choice_by_test_images_and_a_broken_guarantee() -> None:
    chosen = replace(DOWNSTREAM, results=(classifier(), classifier(uses_test_for_selection=True)))
    warning = "chosen on the real test images"
    assert warning in Page(evaluation_page(result(downstream=chosen), images())).text
    assert warning not in Page(evaluation_page(result(), images())).text
    broken = replace(PRIVACY, private=False, statement="NOT private: insecure_seed", epsilon={"pld": "infinite"})
    card = headline_cards(result(privacy=broken))[-1]
    assert (card.value, card.note) == ("infinite", "does not hold, see below")
    assert '<p class="warning">NOT private' in evaluation_page(result(privacy=broken), images())


def test_no_epsilon_or_delta_of_a_page_is_below_the_value_and_no_lower_bound_above_it() -> None:
    """Nearest rounding would write 9.996, 1.51485e-06, 0.4621 and 2.346; the last is a lower bound."""
    private = replace(PRIVACY, epsilon={"pld": 9.996056}, delta=1.5148541e-6, curve=((1, 1.0), (500, 9.996056)))
    attack = {"epsilon": 9.996056, "delta": 1.5148541e-6, "allowed": 0.46211716, "least_epsilon": 2.3456789}
    whole = result(privacy=private, memorisation={"Membership inference: loss threshold": attack})
    text = Page(evaluation_page(whole, images())).text
    for words in ("ε by accountant 9.997 (pld)", "δ 1.51486e-06", "allowed 0.4622", "least epsilon 2.345"):
        assert words in " ".join(text.split()), words
    page = evaluation_page(whole, images())
    assert "ε ends at 9.997" in page and not re.search(r"9\.996\b|1\.51485e-06|0\.4621\b|2\.346\b", page)


def test_no_epsilon_of_a_comparison_is_below_the_value() -> None:
    private = replace(PRIVACY, epsilon={"pld": 9.996056}, delta=1.5148541e-6)
    both = {**runs(), "eps9": result(privacy=private, scores={"frechet": score(7.0, "FID")})}
    page = comparison_page(compare_results(both), both, {})
    assert "9.997" in page and "1.51486e-06" in page and "By epsilon" in page
    assert not re.search(r"9\.996\b|9\.99606|1\.51485e-06", page)


def test_the_neighbouring_relation_is_said_in_words() -> None:
    stated = replace(PRIVACY, statement="(9.98, 1e-05)-differentially private, add_or_remove_one, record: one image")
    said = Page(evaluation_page(result(privacy=stated), images())).text
    assert "private, one record more or less, record: one image" in said and "add_or_remove_one" not in said


def test_a_forced_comparison_is_marked() -> None:
    forced = result(protocol=replace(PROTOCOL, forced="one set was rounded"))
    assert "although one set was rounded" in Page(evaluation_page(forced, images())).text


def test_verdicts_stand_on_the_page_where_levels_are_known() -> None:
    assert "verdict" not in Page(evaluation_page(result(), images())).text.split("Classifiers")[0]
    levels = {REAL: 2.0, PUBLIC: 45.0}
    known = result(
        scores={"frechet": replace(score(12.345, "FID"), levels=levels)},
        downstream=replace(DOWNSTREAM, results=(classifier(levels={CHANCE: 0.1, REAL: 0.98}),)),
        levels={REAL: ImageSet("ldm.data.mnist.MNISTVal", 10000, "32x32"), PUBLIC: ImageSet("p.pt", 500, "32x32")},
    )
    page = Page(evaluation_page(known, images()))
    assert page.faults == []
    assert "76 % of the way from the public model (45) to real images (2)" in page.text
    assert "92 % of what real images reach (98.0 %)" in page.text
    first, second = headline_cards(known)[:2]
    assert (first.value, first.note) == ("12.35", "76 % of the way from the public model to real images")
    assert (second.value, second.note) == ("90.0 %", "92 % of what real images reach")
    assert "level: public p.pt, 500 images" in page.text


def test_no_folder_of_this_machine_is_on_a_page() -> None:
    """Whatever string of a result holds an absolute path, with the place in front of it taken away."""
    secret = "/secret-home/ann/data"
    hidden = result(
        title=f"samples of {secret}/run 7",
        samples=GeneratedSet(
            f"{secret}/gen.pt", 3, "32x32", meta={"ckpt": f"{secret}/last.ckpt", "f": [{"a": secret}]}
        ),
        real=ImageSet(f"{secret}/my scans size:32 (bilinear)", 3, "32x32"),
        protocol=replace(PROTOCOL, weights=f"{secret}/w.pth", forced=f"{secret}/a and {secret}/b differ"),
        downstream=replace(DOWNSTREAM, test=f"{secret}/test.npz split:test", settings={"file": f"{secret}/p.yaml"}),
        privacy=replace(PRIVACY, public_data=(f"latents from {secret}/cache",), not_covered=(f"{secret}/x",)),
        memorisation={f"Membership ({secret}/m.json)": {"verdict": f"see {secret}/v", "from": f"{secret}/f"}},
        not_measured={"per_class": f"{secret}/gen.pt: no labels"},
        levels={PUBLIC: ImageSet(f"{secret}/public.pt", 3, "32x32")},
    )
    both = {"a": hidden, f"{secret}/b": result()}
    document = evaluation_page(hidden, images())
    for page in (document, comparison_page(compare_results(both), both, {})):
        assert re.findall(r".{0,60}(?:secret-home|ann/).{0,60}", page) == []
    for word in ("gen.pt", "last.ckpt", "my scans size:32", "w.pth", "test.npz split:test", "m.json", "public.pt"):
        assert word in document, word


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann/a b/c.pt", "c.pt"),
        ("C:\\Users\\ann\\c.pt", "c.pt"),
        ("from ~/runs/a.pt, then", "from a.pt, then"),
        ("fid/compute_fid.py and a/b", "fid/compute_fid.py and a/b"),
        ("https://example.org/a/b.html", "https://example.org/a/b.html"),
        ("1/2 of 3 / 4", "1/2 of 3 / 4"),
        ("/data/", "data"),
        ("ldm.data.mnist.MNISTTrain size:32", "ldm.data.mnist.MNISTTrain size:32"),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, shown: str) -> None:
    assert hide_folders(text) == shown


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
    assert strip(torch.zeros(2, 3, 32, 32), "alt").sharp
    large = sheet(torch.zeros(2, 3, 256, 256), 2)
    assert large.width < 270 and not strip(torch.zeros(2, 3, 256, 256), "alt").sharp


def test_charts_describe_themselves_and_take_any_values() -> None:
    assert bars({}, "x") == "" and lines({"a": []}, "x", x="x", y="y") == ""
    for chart in (
        bars({"a<b": 3.0, "c": 0.0}, "Bars"),
        bars({"a": 0.0}, "Zero"),
        lines({"one": [(1, 2)]}, "One", x="x", y="y"),
        lines({"flat": [(0, 1), (5, 1)], "up": [(0, 0), (5, 9)]}, "Two", x="x", y="y", from_zero=True),
    ):
        assert Page(chart).faults == [] and "nan" not in chart
    assert "a&lt;b 3" in bars({"a<b": 3.0}, "Bars")


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0.0, 9.99), (30.6, 94.7), (-0.5, 0.5), (1e-4, 3e-4), (0, 12345)):
        ticks = _ticks(low, high)
        assert 3 <= len(ticks) <= 11 and low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9
    assert _ticks(0.0, 9.99) == [0, 2, 4, 6, 8]


def test_table_marks_cells_and_is_empty_without_rows() -> None:
    table = ENVIRONMENT.get_template("macros.html").module.table
    assert table(("a",), []).strip() == ""
    found = table(("a", "b"), [("x", "1"), ("<i>", "2")], numbers=(1,), marks={(1, 1): "best"})
    assert '<td class="number best">2 <small>best</small></td>' in found and found.count("scope=") == 4
    assert '<td class="number">1</td>' in found and "&lt;i&gt;" in found


def runs(**second: Any) -> dict[str, EvaluationResult]:
    better = {"frechet": score(5.0, "FID"), "precision": score(0.6, "Precision", "higher")}
    other = {"scores": better, "privacy": replace(PRIVACY, epsilon={"pld": 20.0}), **second}
    return {"eps10": result(), "eps20": result(**other)}


def test_comparison_names_the_best_in_each_direction() -> None:
    compared = compare_results(runs())
    assert compared.scores["frechet"].best == "eps20" and compared.scores["precision"].best == "eps10"
    assert compared.scores["accuracy_cnn"].runs["eps10"] == Cell(0.9, 0.01)
    privacy = compared.privacy["eps20"]
    assert privacy is not None and privacy.epsilon == 20.0 and compared.differences == {}
    image = sheet(torch.zeros(4, 1, 8, 8), 2)
    found = Page(comparison_page(compared, runs(), {"eps10": image}))
    assert found.faults == [] and len(found.images) == 1 and "Quality and privacy" in found.text


@pytest.mark.parametrize(
    ("first", "second", "best", "tied"),
    [
        ((0.70, 0.03), (0.60, 0.04), "a", ()),  # 0.10 is more than hypot(0.03, 0.04) = 0.05
        ((0.70, 0.06), (0.60, 0.09), None, ("a", "b")),  # and less than 0.108
        ((0.70, None), (0.60, None), "a", ()),
        ((0.70, None), (0.70, None), None, ("a", "b")),
        ((0.70001, None), (0.70002, None), None, ("a", "b")),  # written alike
    ],
)
def test_the_best_is_ahead_by_more_than_the_deviation(
    first: tuple[float, float | None], second: tuple[float, float | None], best: str | None, tied: tuple[str, ...]
) -> None:
    both = {
        name: result(downstream=None, scores={"recall": score(value, "Recall", "higher", spread)})
        for name, (value, spread) in (("a", first), ("b", second))
    }
    compared = compare_results(both)
    assert (compared.scores["recall"].best, compared.scores["recall"].tied) == (best, tied)
    found = comparison_page(compared, both, {})
    assert found.count("<small>best</small>") == (best is not None)
    assert found.count("<small>level</small>") == len(tied)


def test_only_the_runs_at_the_top_are_level() -> None:
    values = {"a": (5.0, 1.0), "b": (5.5, 0.2), "c": (9.0, 0.1)}
    three = {
        run: result(scores={"frechet": score(value, "FID", "lower", spread)}) for run, (value, spread) in values.items()
    }
    assert compare_results(three).scores["frechet"].tied == ("a", "b")


def test_quality_is_drawn_against_epsilon_only_where_epsilon_differs() -> None:
    close = runs(privacy=replace(PRIVACY, epsilon={"pld": 10.0}))
    assert "Quality and privacy" not in Page(comparison_page(compare_results(close), close, {})).text


def test_runs_measured_differently_have_no_best() -> None:
    unlike = runs(protocol=replace(PROTOCOL, weights="other", policy="other"))
    compared = compare_results(unlike)
    assert compared.differences == {"weights": {"eps10": "abc", "eps20": "other"}}
    assert all(entry.best is None and entry.tied == () for entry in compared.scores.values())
    found = Page(comparison_page(compared, unlike, {}))
    assert found.faults == [] and "not measured alike (weights)" in found.text
    assert "best" not in found.text.split("Scores")[1]


def test_runs_without_a_score_or_a_card_are_shown_with_a_dash() -> None:
    bare = runs(scores={"frechet": score(5.0, "FID")}, privacy=None, downstream=None)
    compared = compare_results(bare)
    found = Page(comparison_page(compared, bare, {}))
    assert found.faults == [] and "–" in found.text and "no privacy card" in found.text
    assert compared.scores["precision"].best is None
