"""From a configuration and a checkpoint to images: counts, labels, weights and the checks before the first image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.checkpoint import read_checkpoint
from ldm.errors import UserError
from ldm.inference import (
    SamplingOptions,
    check_classes,
    check_output,
    conditions,
    draw_samples,
    image_side,
    labels_for,
    load_model,
    sample_images,
    sample_set,
)
from tests import tiny
from tests.tiny_runs import small_checkpoint, small_ldm, write_yaml

CPU = torch.device("cpu")
QUICK = SamplingOptions(steps=2, batch_size=4, seed=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A configuration and a checkpoint of the class-conditional model."""
    folder = tmp_path_factory.mktemp("model")
    checkpoint = small_checkpoint(folder / "public.ckpt", small_ldm())
    return write_yaml(folder / "model.yaml", {"model": {"base_learning_rate": 1.0, **small_ldm()}}), checkpoint


@pytest.fixture(scope="module")
def model(files: tuple[str, Path]) -> Any:
    return load_model(*files, CPU)


@settings(max_examples=50, deadline=None)
@given(classes=st.lists(st.integers(0, 50), min_size=1, max_size=12, unique=True), count=st.integers(1, 200))
def test_labels_are_exact_balanced_and_class_major(classes: list[int], count: int) -> None:
    labels = labels_for(classes, count).tolist()
    assert len(labels) == count
    shares = [labels.count(label) for label in classes]
    assert sum(shares) == count and max(shares) - min(shares) <= 1
    assert labels == [label for label, share in zip(classes, shares, strict=True) for _ in range(share)]
    assert shares == sorted(shares, reverse=True), "the first classes get the remainder"


def test_no_classes_no_labels() -> None:
    assert labels_for(None, 5) is None
    assert labels_for([3], 2).dtype == torch.int64


def test_weights_of_a_loaded_model(files: tuple[str, Path]) -> None:
    stored = read_checkpoint(files[1])["state_dict"]
    name = "model.diffusion_model.out.2.weight"
    averaged = stored["model_ema." + name.removeprefix("model.").replace(".", "")]
    for ema, wanted in ((True, averaged), (False, stored[name])):
        model = load_model(*files, CPU, ema)
        assert torch.equal(model.state_dict()[name], wanted) and not model.training
    assert not torch.allclose(averaged, stored[name])


@pytest.mark.parametrize("count", [1, 4, 9])
def test_counts_shapes_and_range(model: Any, count: int) -> None:
    images = sample_images(model, count, QUICK, labels_for([0, 1], count), progress=False)
    assert images.shape == (count, 1, 8, 8) and images.dtype == torch.float32
    assert images.abs().max() <= 1 and torch.isfinite(images).all()


def test_pictures_are_clamped(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "decode_first_stage", lambda z: 3 * torch.ones(len(z), 1, 8, 8))
    assert sample_images(model, 2, QUICK, labels_for([0], 2), progress=False).max() == 1


def test_every_image_gets_its_own_label(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = model.get_learned_conditioning
    monkeypatch.setattr(model, "get_learned_conditioning", lambda c: seen.append(c["class_label"]) or encode(c))
    made = draw_samples(model, 9, QUICK, [5, 7])
    assert torch.cat(seen).tolist() == made.labels.tolist() == [5] * 5 + [7] * 4


def test_conditions_of_guidance(model: Any) -> None:
    labels = torch.tensor([1, 2])
    condition, without = conditions(model, labels, QUICK)
    assert condition.shape == (2, 1, 5) and without is None
    _, without = conditions(model, labels, SamplingOptions(scale=2.0, uncond_class=4))
    assert torch.equal(without, model.get_learned_conditioning({"class_label": torch.tensor([4, 4])}))
    with pytest.raises(UserError, match="guidance needs a class that stands for no condition; name it with --uc"):
        conditions(model, labels, SamplingOptions(scale=2.0))
    with pytest.raises(UserError, match="class 10 is out of range"):
        conditions(model, labels, SamplingOptions(scale=2.0, uncond_class=10))


def test_classes_are_checked(model: Any) -> None:
    check_classes(model, [0, 9])
    for classes, line in (([10], "class 10 is out of range"), ([-1], "class -1"), ([], "name classes"), (None, "name")):
        with pytest.raises(UserError, match=line):
            check_classes(model, classes)
    plain = tiny.build(small_ldm("attention"))
    check_classes(plain, None)
    with pytest.raises(UserError, match="unconditional"):
        check_classes(plain, [0])


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"eta": 1.01}, "eta"),
        ({"eta": -0.1}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"steps": 0}, "steps: 0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"decoder_batch_size": -1}, "decoder_batch_size: -1"),
    ],
)
def test_options_out_of_range(values: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        SamplingOptions(**values)


def test_nothing_is_loaded_for_no_images() -> None:
    with pytest.raises(UserError, match="0 samples asked for"):
        sample_set("none.yaml", "none.ckpt", 0, QUICK, device=CPU)


def test_image_side(model: Any) -> None:
    assert image_side(model) == 8


def test_output_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_output("a.pt") == Path("a.pt")
    assert check_output("new/folder/a.png") == Path("new/folder/a.png")
    assert check_output("a.json", (".json",)) == Path("a.json")
    assert list(tmp_path.iterdir()) == [], "checking writes nothing"
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "file").touch()
    for name, line in (
        ("a", "cannot tell what to write; end the name in .pt or .png"),
        ("a.npz", "cannot tell what to write"),
        ("folder.pt", "is a folder; name a file in it"),
        ("file/a.pt", "cannot be written to"),
    ):
        with pytest.raises(UserError, match=line):
            check_output(name)
