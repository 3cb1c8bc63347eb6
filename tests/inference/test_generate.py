"""From a configuration and a checkpoint to images: counts, labels, weights and the checks before the first image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.checkpoint import read_checkpoint
from ldm.errors import UserError
from ldm.inference import (
    ModelSource,
    SamplePlan,
    SamplingOptions,
    check_classes,
    check_output,
    draw_samples,
    image_side,
    labels_for,
    load_model,
    sample_batches,
    sample_images,
    sample_set,
    write_samples,
)
from ldm.inference.generate import batch_seed, conditions
from ldm.samples import SampleSet, SampleWriter, unfinished_folder
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


def test_images_are_clamped(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
    _, without = conditions(model, labels, SamplingOptions(guidance=2.0, uncond_class=4))
    assert torch.equal(without, model.get_learned_conditioning({"class_label": torch.tensor([4, 4])}))
    with pytest.raises(UserError, match="guidance needs a class that stands for no condition; name it with --uc"):
        conditions(model, labels, SamplingOptions(guidance=2.0))
    with pytest.raises(UserError, match="class 10 is out of range"):
        conditions(model, labels, SamplingOptions(guidance=2.0, uncond_class=10))


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


def test_no_images_are_no_plan() -> None:
    with pytest.raises(UserError, match="0 samples asked for"):
        SamplePlan(0, QUICK)


def test_a_written_file_is_what_is_drawn_in_memory(files: tuple[str, Path], tmp_path: Path) -> None:
    given = (ModelSource(*files), SamplePlan(9, QUICK, classes=[3, 5]), CPU)
    write_samples(tmp_path / "a.pt", *given)
    kept, written = sample_set(*given), SampleSet.load(tmp_path / "a.pt")
    assert torch.equal(written.images, kept.images) and torch.equal(written.labels, kept.labels)
    assert written.meta == kept.meta and len(written.meta["config_sha256"]) == 64
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, None])
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(
    files: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int, seed: int | None
) -> None:
    output, options = tmp_path / "a.pt", replace(QUICK, seed=seed)
    write, drawn = SampleWriter.write, []

    def write_and_stop(writer: SampleWriter, images: torch.Tensor) -> None:
        write(writer, images)
        drawn.append(len(images))
        if len(drawn) == stopped_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(SampleWriter, "write", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        write_samples(output, ModelSource(*files), SamplePlan(10, options, [1, 2]), CPU)
    assert not output.exists() and unfinished_folder(output).is_dir()
    torch.manual_seed(17)  # whatever happens in between
    write_samples(output, ModelSource(*files), SamplePlan(10, options, [1, 2]), CPU)
    assert drawn == [4, 4, 2], "nothing is drawn twice"
    assert list(tmp_path.iterdir()) == [output]
    made = SampleSet.load(output)
    undisturbed = sample_set(ModelSource(*files), SamplePlan(10, replace(QUICK, seed=made.meta["seed"]), [1, 2]), CPU)
    assert torch.equal(made.images, undisturbed.images) and torch.equal(made.labels, undisturbed.labels)
    assert made.meta == undisturbed.meta


def test_an_unfinished_file_of_other_settings_is_left_alone(files: tuple[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "a.pt"
    write_samples(output, ModelSource(*files), SamplePlan(5, QUICK, [1]), CPU)
    with SampleWriter(tmp_path / "b.pt", 5, labels_for([1], 5), SampleSet.load(output).meta) as writer:
        writer.write(torch.zeros(4, 1, 8, 8))
    before = (unfinished_folder(tmp_path / "b.pt") / "b.pt").read_bytes()
    for changes, line in (
        ({"options": replace(QUICK, seed=1)}, "seed: 0 there, 1 here"),
        ({"options": replace(QUICK, batch_size=2)}, "batch_size: 4 there, 2 here"),
        ({"classes": [2]}, "other classes"),
        ({"count": 6}, "5 images there, 6 here"),
        ({"ema": False}, "ema: True there, False here"),
    ):
        source = ModelSource(*files, ema=changes.pop("ema", True))
        plan = SamplePlan(**{"count": 5, "options": QUICK, "classes": [1], **changes})
        with pytest.raises(UserError, match=line):
            write_samples(tmp_path / "b.pt", source, plan, CPU)
    assert (unfinished_folder(tmp_path / "b.pt") / "b.pt").read_bytes() == before


def test_no_two_batches_have_the_same_random_numbers() -> None:
    seeds = {batch_seed(seed, number) for seed in (0, 1, 2**32 - 1) for number in range(20_000)}
    assert len(seeds) == 60_000 and min(seeds) >= 0 and max(seeds) < 2**32
    assert [batch_seed(seed, 0) for seed in (0, 7)] == [0, 7]


def test_a_batch_does_not_depend_on_the_batches_before_it(model: Any) -> None:
    labels = labels_for([0, 1], 10)
    whole = sample_images(model, 10, QUICK, labels, progress=False)
    (last,) = sample_batches(model, 10, QUICK, labels, range(2, 3), progress=False)
    assert torch.equal(last, whole[8:])
    assert not torch.allclose(whole[:4], whole[4:8]), "batches differ"


def test_a_seed_is_chosen_and_said_when_none_is_given(files: tuple[str, Path]) -> None:
    free = replace(QUICK, seed=None)
    one, two = (sample_set(ModelSource(*files), SamplePlan(2, free, [1]), CPU) for _ in range(2))
    assert one.meta["seed"] != two.meta["seed"]
    again = sample_set(ModelSource(*files), SamplePlan(2, replace(QUICK, seed=one.meta["seed"]), [1]), CPU)
    assert torch.equal(one.images, again.images)


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
