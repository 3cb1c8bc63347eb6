"""scripts/mnist_sampling_and_acc.py, in the spelling of the documents and of the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ldm.inference
from ldm.evaluation.classifiers import downstream
from ldm.samples import SampleSet
from scripts import mnist_sampling_and_acc as verb
from tests.tiny_runs import Commands, commands, small_checkpoint, small_ldm, write_yaml

__all__ = ["commands"]

QUICK = ["-step", 2, "--num_train", 23, "--num_eval", 7, "-bs", 9, "--epochs", 2, "--device", "cpu"]


class RealDigits:
    """Twelve labelled images as a dataset class."""

    def __init__(self, size: int = 28, split: str = "validation") -> None:
        self.size, self.split = size, split

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        return {"image": torch.full((self.size, self.size, 1), index / 12).numpy(), "class_label": index % 10}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.yaml, model.ckpt and real.pt, with images of the same size."""
    folder = tmp_path_factory.mktemp("model")
    small_checkpoint(folder / "model.ckpt", small_ldm())
    write_yaml(folder / "model.yaml", {"model": small_ldm()})
    SampleSet(torch.rand(12, 1, 8, 8) * 2 - 1, torch.arange(12) % 10).save(folder / "real.pt")
    return folder


def words(files: Path, *more: object) -> list[object]:
    return ["--yaml", files / "model.yaml", "--ckpt", files / "model.ckpt", "--test", files / "real.pt", *QUICK, *more]


def test_readme_command(commands: Commands, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, sets = [], []
    load, score = ldm.inference.load_model, downstream.downstream_accuracy
    monkeypatch.setattr(ldm.inference, "load_model", lambda *args: loads.append(args) or load(*args))
    monkeypatch.setattr(
        downstream, "downstream_accuracy", lambda *a, **k: sets.append((a[0], k["held_out"], a[1])) or score(*a, **k)
    )
    assert commands.type(verb.main, *words(files, "--output", "scores.json", "--seeds", 2)) == 0, commands.err
    assert len(loads) == 1, "the model is loaded once"
    ((train, held_out, test),) = sets
    assert (len(train), len(held_out), len(test)) == (23, 7, 12)
    assert torch.bincount(train.labels).tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert not torch.equal(train.images[:1], held_out.images[:1]), "held-out samples are others"
    *lines, written, following = commands.out.splitlines()
    assert written == "written to scores.json" and following.startswith("next: dp-ldm sample --yaml ")
    assert lines[0] == "accuracy on 12 real images, epoch chosen on 7 held-out samples"
    assert [line.split(":")[0] for line in lines[1:]] == ["Logistic regression", "MLP", "CNN", "mean of 3 classifiers"]
    assert all(" +- " in line and line.endswith(" %") for line in lines[1:4])
    scores = json.loads(Path("scores.json").read_text())
    assert [result["seed"] for result in scores["cnn"]["results"]] == [0, 1]


def test_a_protocol_without_held_out_samples_draws_none(commands: Commands, files: Path) -> None:
    more = ["--protocol", "best-test-epoch", "--models", "logreg"]
    assert commands.type(verb.main, *words(files, *more)) == 0, commands.err
    first, score = commands.out.splitlines()
    assert first.endswith("not an accuracy on unseen images") and score.endswith("not an accuracy on unseen images)")


def test_spellings_of_the_original_and_a_dataset_class(commands: Commands, files: Path) -> None:
    given = ["-y", files / "model.yaml", "-ckpt", files / "model.ckpt", "-eta", 0, "-scale", 2, "--uc", 9, *QUICK]
    test = ["--test", f"{__name__}.RealDigits", "--models", "logreg", "-c", 0, 1]
    assert commands.type(verb.main, *given, *test) == 0, commands.err
    assert "Logistic regression: " in commands.out and "CNN" not in commands.out


def test_the_real_test_images_are_mnist_s_unless_said_otherwise(
    commands: Commands, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(name: str, settings: list[str], size: int) -> SampleSet:
        asked.append((name, settings, size))
        return SampleSet.load(files / "real.pt")

    from ldm.evaluation.inputs import sources

    monkeypatch.setattr(sources, "load_labelled", load)
    given = ["--yaml", files / "model.yaml", "--ckpt_path", files / "model.ckpt", *QUICK, "--models", "logreg"]
    assert commands.type(verb.main, *given) == 0, commands.err
    assert commands.type(verb.main, *given, "--test_args", "holdout:9") == 0
    assert commands.type(verb.main, *given, "--test", "a.B") == 0
    assert asked == [
        ("ldm.data.mnist.MNISTVal", ["split:test"], 8),
        ("ldm.data.mnist.MNISTVal", ["holdout:9"], 8),
        ("a.B", [], 8),
    ]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--models cn", "unknown classifier 'cn'; did you mean 'cnn'?"),
        ("--test none.pt", "none.pt: no such file"),
        ("--output scores.txt", "end the name in .json"),
        ("--num_train 0", "--num_train 0: give a number of 1 or more"),
        ("--num_eval 0", "--num_eval 0: give a number of 1 or more"),
        ("--classes 12", "class 12 is out of range"),
        ("--scale 2", "guidance needs a class"),
        ("-eta 2", "eta: 2.0 is outside [0, 1]"),
        ("--epochs 0", "--epochs 0: give a number of 1 or more"),
        ("--protocol dp-dlm", "unknown protocol 'dp-dlm'; did you mean 'dp-ldm'?"),
        ("--seeds 0", "--seeds 0: give a number of 1 or more"),
        ("--ckpt none.ckpt", "checkpoint 'none.ckpt' does not exist"),
        ("--epoch 1", "unknown flag '--epoch'; did you mean '--epochs'?"),
    ],
)
def test_mistakes(commands: Commands, files: Path, monkeypatch: pytest.MonkeyPatch, more: str, line: str) -> None:
    drawn = []
    monkeypatch.setattr(ldm.inference.generate.DDIMSampler, "sample", lambda *args, **kwargs: drawn.append(args))
    assert line in commands.refused(verb.main, *words(files, *more.split()))
    assert drawn == [], "before the first sample"
