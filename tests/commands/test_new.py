"""`dp-ldm new`: one look at a folder, a YAML that loads, and the answer before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.commands.table import dispatch
from ldm.config import load_config
from ldm.errors import UserError
from ldm.reports.own_images import PUBLIC_MODELS, Settings, fitting_model, rounded_down, rounded_up
from ldm.samples.folder_survey import survey


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
    dispatch(["new", str(shapes), "--epsilon", "5", "--dataset-size", "310"])
    out = capsys.readouterr().out
    assert "WILL NOT DO" in out and "1 hidden file" in out and "1 .txt file" in out and "20x24 (4)" in out
    assert out.rstrip().endswith("dp-ldm train shapes.yaml")
    config = load_config(["shapes.yaml"])
    dp = config.model.params.dp_config
    assert (dp.epsilon, dp.dataset_size, dp.enabled) == (5, 310, True)
    assert dp.delta <= 0.1 / 310
    assert config.data.params.batch_size == 78
    assert config.model.base_learning_rate * 78 == pytest.approx(PUBLIC_MODELS[0].learning_rate, rel=1e-3)
    assert list(config.data.params.train.params.class_names) == ["circle", "cross"]
    assert Path(config.model.params.ckpt_path).is_file()
    assert config.model.target == "ldm.models.diffusion.ddpm.LatentDiffusion"
    with pytest.raises(UserError, match="exists; name another file"):
        dispatch(["new", str(shapes), "--epsilon", "5"])


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
    with pytest.raises(UserError, match="colour, and every shipped public model is grey; type --grey"):
        dispatch(["new", str(shapes), "--epsilon", "5"])


def test_what_no_shipped_model_fits() -> None:
    with pytest.raises(UserError, match="11 classes, and the shipped public models have 10 at most"):
        fitting_model(1, 11)
    with pytest.raises(UserError, match="--public-model none"):
        fitting_model(1, 2, "none")


@pytest.mark.parametrize(("count", "declared"), [(1, 2), (9, 10), (300, 310), (3000, 3100), (10_000, 11_000)])
def test_declared_sizes_are_above_the_real_one(count: int, declared: int) -> None:
    assert rounded_up(count) == declared


def test_a_delta_is_never_rounded_up() -> None:
    assert rounded_down(0.1 / 310) == 3e-4
    assert rounded_down(1e-5) == 1e-5


def test_the_outlook_follows_the_number_of_images() -> None:
    words = [" ".join(Settings.for_size(PUBLIC_MODELS[0], 5, size).outlook()) for size in (310, 3100, 11_000)]
    assert "WILL NOT DO" in words[0] and "in between" in words[1] and "enough" in words[2]
