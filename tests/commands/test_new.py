"""`dp-ldm new`: one look at a folder, a YAML that loads, and the answer before training."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ldm.commands.table import dispatch
from ldm.config import load_config, to_plain
from ldm.errors import UserError
from ldm.privacy.accounting import epsilon
from ldm.reports.own_images import (
    MOMENTS_MEASURED,
    PUBLIC_MODELS,
    Settings,
    declared_count,
    declared_delta,
    fitting_model,
    yaml_text,
)
from ldm.samples import SampleSet
from ldm.samples.folder_survey import survey
from ldm.shipped import find_shipped
from ldm.training.public_frame import load_frame
from ldm.training.statistics_plan import StatisticsPlan

ROOT = Path(__file__).parents[2]
BY_NAME = {model.name: model for model in PUBLIC_MODELS}


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of two grey images, a hidden file and a text file."""
    monkeypatch.chdir(tmp_path)
    for name in ("cross", "circle"):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((20, 24), 40 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "shapes" / name / f"{number}.png")
    (tmp_path / "shapes" / "cross" / ".hidden.png").touch()
    (tmp_path / "shapes" / "cross" / "notes.txt").touch()
    return tmp_path / "shapes"


def test_the_yaml_says_what_the_rules_say(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["new", str(shapes), "--epsilon", "5", "--dataset-size", "310", "--public-model", "glyphs32"])
    out = capsys.readouterr().out
    assert "WILL NOT DO" in out and "1 hidden file" in out and "1 .txt file" in out and "20x24 (4)" in out
    assert out.rstrip().endswith("dp-ldm train shapes.yaml")
    config = load_config(["shapes.yaml"])
    dp = config.model.params.dp_config
    assert (dp.epsilon, dp.dataset_size, dp.enabled) == (5, 310, True)
    assert dp.delta <= 0.1 / 310
    assert config.data.params.batch_size == 78
    assert config.model.base_learning_rate * 78 == pytest.approx(BY_NAME["glyphs32"].learning_rate, rel=1e-3)
    assert list(config.data.params.train.params.class_names) == ["circle", "cross"]
    assert Path(config.model.params.ckpt_path).is_file()
    assert config.model.target == "ldm.models.diffusion.ddpm.LatentDiffusion"
    assert "sampling" not in config, "DP-SGD releases no statistics to draw from"
    with pytest.raises(UserError, match="exists; name another file"):
        dispatch(["new", str(shapes), "--epsilon", "5"])


def coloured(folder: Path, count: int = 1) -> None:
    """Add colour images to the folder's classes in turn."""
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / ("cross", "circle")[number % 2] / f"colour{number}.png")


@pytest.mark.parametrize("name", ["clothes32", "digits32", "colour32"])
def test_class_moments_stay_within_epsilon(name: str, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "colour32":
        coloured(shapes)
    words = ["--dataset-size", "310", *(["--public-model", name] if name == "digits32" else [])]
    dispatch(["new", str(shapes), "--epsilon", "5", *words])
    out = capsys.readouterr().out
    assert f"public model {name}" in out and ("blurs fine forms" in out) == (name == "colour32")
    config = load_config(["shapes.yaml"])
    dp = config.model.params.dp_config
    statistics = StatisticsPlan.read(to_plain(dp.warm_up))
    spent = epsilon(statistics.events("add_or_remove_one"), dp.delta)
    assert 0.9 * 5 < spent < 5 and statistics.classes == 2
    means, spread = statistics.rounds
    assert not means.weights[2] and spread.centred and spread.clip_norm < statistics.clip_norm
    assert load_frame(statistics.frame).dimensions == 256
    assert statistics.training.steps == 500 and statistics.training.weight_limit == 100
    assert load_frame(statistics.frame).directions.norm() > 0 and statistics.clip_norm > 0
    assert config.data.params.train.params.channels == BY_NAME[name].channels
    assert config.model.params.first_stage_config.params.ddconfig.in_channels == BY_NAME[name].channels
    assert Path(config.model.params.ckpt_path).name == f"{name}-ldm.safetensors"
    assert config.lightning.trainer.max_steps == 1 and config.model.params.scale_by_std
    assert config.sampling == {"source": "draws"}
    assert list(dp.public_data) and config.data.params.train.target == "ldm.data.folder.ImageFolder"


def test_a_large_signal_pays_for_cells(shapes: Path) -> None:
    dispatch(["new", str(shapes), "--epsilon", "10", "--dataset-size", "3100"])
    dp = load_config(["shapes.yaml"]).model.params.dp_config
    statistics = StatisticsPlan.read(to_plain(dp.warm_up))
    assert [each.cells for each in statistics.rounds] == [1, 1, 4]
    assert statistics.rounds[2].leading == 24 and statistics.rounds[2].clip_norm is None
    assert 0.9 * 10 < epsilon(statistics.events("add_or_remove_one"), dp.delta) < 10


def test_a_small_signal_is_measured_by_one_query(shapes: Path) -> None:
    dispatch(["new", str(shapes), "--epsilon", "1", "--dataset-size", "310"])
    dp = load_config(["shapes.yaml"]).model.params.dp_config
    statistics = StatisticsPlan.read(to_plain(dp.warm_up))
    assert len(statistics.rounds) == 1 and not statistics.rounds[0].centred
    assert 0.9 < epsilon(statistics.events("add_or_remove_one"), dp.delta) < 1


@pytest.mark.slow
def test_a_folder_becomes_a_private_model(shapes: Path) -> None:
    """`dp-ldm train` on the YAML of `dp-ldm new`: a release that verifies; it says nothing about quality."""
    dispatch(["new", str(shapes), "--epsilon", "5", "--dataset-size", "12"])
    few = ["model.params.dp_config.warm_up.training.steps=2", "--accelerator", "cpu", "--enable_progress_bar", "false"]
    dispatch(["train", "shapes.yaml", *few])
    (run,) = Path("logs").iterdir()
    dispatch(["release", str(run), "release"])
    dispatch(["verify", "release"])
    dispatch(["sample", "release", "--output", "s.pt", "-n", "2", "--ddim_steps", "2", "--classes", "cross"])
    assert SampleSet.load(Path("s.pt")).labels.tolist() == [1, 1]
    dispatch(["sample", "release", "--output", "d.pt", "-n", "3"])
    drawn = SampleSet.load(Path("d.pt"))
    assert drawn.labels.tolist() == [0, 0, 1] and drawn.images.shape == (3, 1, 32, 32)


def test_all_unreadable_files_are_listed(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24), np.uint8)).save(shapes / "cross" / "b.png")
    whole = (shapes / "cross" / "b.png").read_bytes()
    (shapes / "circle" / "a.png").write_text("no image")
    (shapes / "cross" / "b.png").write_bytes(whole[: len(whole) // 2])  # its header can be read
    with pytest.raises(UserError, match="2 files cannot be read"):
        dispatch(["new", str(shapes), "--epsilon", "5"])
    out = capsys.readouterr().out
    assert "circle/a.png" in out and "cross/b.png" in out
    assert not Path("shapes.yaml").exists()


def test_a_survey_counts_colour_and_depth(shapes: Path) -> None:
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(shapes / "circle" / "c.png")
    Image.fromarray(np.zeros((20, 24), np.uint16)).save(shapes / "circle" / "d.png")
    found = survey(shapes)
    assert (found.colour, found.deep, len(found.headers)) == (1, 1, 6)
    dispatch(["new", str(shapes), "--epsilon", "5", "--grey"])
    assert load_config(["shapes.yaml"]).data.params.train.params.channels == 1


@pytest.mark.slow
def test_the_shipped_colour_model_samples_a_colour_folder(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain with one step of further training: a release that verifies and samples in colour."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shapes.parent / "cache"))
    coloured(shapes, 6)
    dispatch(["new", str(shapes), "--epsilon", "5"])
    few = ["model.params.dp_config.warm_up.training.steps=1", "--accelerator", "cpu", "--enable_progress_bar", "false"]
    dispatch(["train", "shapes.yaml", *few])
    (run,) = Path("logs").iterdir()
    dispatch(["release", str(run), "release"])
    dispatch(["verify", "release"])
    dispatch(["sample", "release", "--output", "s.pt", "-n", "2", "--ddim_steps", "2"])
    images = SampleSet.load(Path("s.pt")).images
    assert images.shape == (2, 3, 32, 32) and (images.amax(dim=1) - images.amin(dim=1)).mean() > 0.01


@pytest.mark.slow
def test_a_colour_folder_from_a_model_of_ones_own(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two public trainings of docs/your-data.md, cut to a step each, then the folder; nothing about quality."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shapes.parent / "cache"))
    monkeypatch.setattr("ldm.reports.own_frame.COUNT", 60)
    coloured(shapes, 6)
    parts = "[{target: ldm.data.collages.CollagesTrain, params: {count: 60}}]"
    few = ["--accelerator", "cpu", "--max_steps", "1", "data.params.batch_size=8", "--enable_progress_bar", "false"]
    few += [f"data.params.train.params.parts={parts}"]
    dispatch(["train", "configs/own-images/public-colour-autoencoder.yaml", "--name", "one", *few])
    (one,) = Path("logs").glob("*_one")
    first = f"model.params.first_stage_config.params.ckpt_path={one}/checkpoints/last.ckpt"
    dispatch(["train", "configs/own-images/public-colour-ldm.yaml", "--name", "two", *few, first])
    (two,) = Path("logs").glob("*_two")
    dispatch(["new", str(shapes), "--epsilon", "5", "--weights", f"{two}/checkpoints/last.ckpt"])
    assert Path("shapes-frame.safetensors").is_file()
    training = ["model.params.dp_config.warm_up.training.steps=1", "--accelerator", "cpu"]
    dispatch(["train", "shapes.yaml", "--name", "three", *training, "--enable_progress_bar", "false"])
    (run,) = Path("logs").glob("*_three")
    dispatch(["sample", str(run), "--output", "s.pt", "-n", "2", "--ddim_steps", "2"])
    assert SampleSet.load(Path("s.pt")).images.shape == (2, 3, 32, 32)


def test_what_no_public_model_fits() -> None:
    with pytest.raises(UserError, match="11 classes, and the public models have 10 at most"):
        fitting_model(1, 11)
    with pytest.raises(UserError, match="--public-model none: there is none; known are clothes32, digits32"):
        fitting_model(1, 2, "none")
    with pytest.raises(UserError, match="glyphs32 is for grey images"):
        fitting_model(3, 2, "glyphs32", "some.ckpt")


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_of_ones_own_get_directions_of_their_own(channels: int) -> None:
    """Directions of the shipped latents mean nothing in other latents."""
    shipped, own = fitting_model(channels, 2), fitting_model(channels, 2, weights="own.ckpt")
    assert shipped.moments is not None and shipped.moments.frame
    assert own.moments is not None and not own.moments.frame and own.weights == "own.ckpt"
    assert "own.ckpt" in own.public_data[0] and own.configs == shipped.configs


def test_every_shipped_public_model_is_in_the_catalogue() -> None:
    shipped = {path.name for path in (ROOT / "checkpoints").glob("*-ldm.safetensors")}
    assert {Path(model.weights).name for model in PUBLIC_MODELS} == shipped
    named = [file for model in PUBLIC_MODELS for file in (*model.configs, model.weights)]
    named += [model.moments.frame for model in PUBLIC_MODELS if model.moments is not None]
    assert [file for file in named if find_shipped(file) is None] == []


@pytest.mark.parametrize(("count", "declared"), [(1, 2), (9, 10), (300, 310), (3000, 3100), (10_000, 11_000)])
def test_declared_sizes_are_above_the_real_one(count: int, declared: int) -> None:
    assert declared_count(count) == declared


def test_a_delta_is_never_rounded_up() -> None:
    assert declared_delta(0.1 / 310) == 3e-4
    assert declared_delta(1e-5) == 1e-5


def outlook(name: str, epsilon: float, size: int) -> str:
    return " ".join(Settings.for_size(BY_NAME[name], epsilon, size, 4).outlook())


@pytest.mark.parametrize(("name", "epsilon", "middle"), [("glyphs32", 5.0, 3100), ("clothes32", 1.0, 2100)])
def test_the_outlook_follows_the_number_of_images(name: str, epsilon: float, middle: int) -> None:
    words = [outlook(name, epsilon, size) for size in (310, middle, 33_000)]
    assert "WILL NOT DO" in words[0] and "in between" in words[1] and "enough" in words[2]


@pytest.mark.parametrize(
    ("size", "epsilon", "rounds", "measured"),
    [
        (310, 1, "one round", "46 to 55 % (25)"),
        (310, 10, "two rounds", "66 to 71 % (96)"),
        (3100, 1, "two rounds", "88 % (206)"),
        (3100, 5, "three rounds", "98 to 99 % (846)"),
    ],
)
def test_the_outlook_is_that_of_the_rounds_that_are_written(
    size: int, epsilon: float, rounds: str, measured: str
) -> None:
    settings = Settings.for_size(BY_NAME["clothes32"], epsilon, size, 4)
    assert f"class moments in {rounds}" in outlook("clothes32", epsilon, size)
    assert measured in outlook("clothes32", epsilon, size)
    written = yaml.safe_load(yaml_text(settings, "images", "abcd"))["model"]["params"]["dp_config"]["warm_up"]
    assert len(written["rounds"]) == len(settings.shares) == {"one": 1, "two": 2, "three": 3}[rounds.split()[0]]


def test_the_outlook_has_the_numbers_of_the_documentation() -> None:
    """Every figure of the outlook is one of the table in docs/your-data.md, rounded."""
    page = (ROOT / "docs" / "your-data.md").read_text(encoding="utf-8")
    table = page.partition("### Class moments")[2].partition("1,000 draws of one query")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    found = {round(float(number) + 1e-6) for row in rows for number in re.findall(r"\d+\.\d", row)}
    signals = {cell for row in rows for cell in re.findall(r"[\d,]+(?=:)", row)}
    for _, words in MOMENTS_MEASURED:
        brackets = re.findall(r"\(([^)]*)\)", words)
        assert {each for part in brackets for each in part.split(" and ")} <= signals
        percents = re.findall(r"(\d+)(?: to (\d+))? %", words)
        assert {int(each) for pair in percents for each in pair if each} <= found


def test_an_epsilon_is_written_as_it_was_typed(shapes: Path) -> None:
    for typed in ("5", "0.12345678", "3.14159265358979"):
        dispatch(["new", str(shapes), "--epsilon", typed, "--force"])
        assert load_config(["shapes.yaml"]).model.params.dp_config.epsilon == float(typed)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--epsilon", "-1"], "--epsilon -1: give a number above 0"),
        (["--epsilon", "nan"], "--epsilon nan: give a number above 0"),
        (["--epsilon", "5", "--dataset-size", "0"], "--dataset-size 0: give the number of images"),
        (["--epsilon", "5", "--output", "shapes"], "it is a folder; add a file name"),
    ],
)
def test_a_wrong_argument_of_new_is_refused_at_once(
    words: list[str], line: str, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=line):
        dispatch(["new", str(shapes), *words])
    assert capsys.readouterr().out == "" and not Path("shapes.yaml").exists()


@pytest.mark.parametrize("name", [b"caf\xe9", b"${oc.env:HOME}", b"$HOME", b"~cross", b"a\x7f"])
def test_a_folder_name_that_no_yaml_file_holds_is_refused(
    name: bytes, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shapes / "cross").rename(shapes / os.fsdecode(name))
    with pytest.raises(UserError, match="rename"):
        dispatch(["new", str(shapes), "--epsilon", "5"])
    assert not Path("shapes.yaml").exists()


def test_names_with_signs_of_yaml_are_kept(shapes: Path) -> None:
    names = ["- a: #1", "cl{x}", "null", "é 图 b's"]
    for number, name in enumerate(names):
        (shapes / name).mkdir()
        Image.new("L", (8, 8), number).save(shapes / name / "0.png")
    settings = Settings.for_size(replace(BY_NAME["clothes32"], weights="my w: #2.ckpt"), 5.0, 100, 4)
    Path("a.yaml").write_text(yaml_text(settings, "my: images #1", names), encoding="utf-8")
    content = yaml.safe_load(Path("a.yaml").read_text(encoding="utf-8"))
    assert content["data"]["params"]["train"]["params"]["class_names"] == names
    assert content["data"]["params"]["train"]["params"]["root"] == "my: images #1"
    assert content["model"]["params"]["ckpt_path"] == "my w: #2.ckpt"
