"""scripts/train_classifier.py, acc_wrn40_4.py and cifar_downstream.py, in the spelling of their originals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ldm.evaluation.classifiers import training as classifier_training
from ldm.evaluation.classifiers.wide_resnet import WideResNet
from ldm.samples import SampleSet
from scripts import acc_wrn40_4, cifar_downstream, train_classifier
from tests.tiny_runs import ROOT, Commands, commands

__all__ = ["commands"]


class RealDigits:
    """The last 200 digits as a dataset class, in colour; `config.twice` asks for them again."""

    def __init__(self, size: int = 8, config: dict | None = None) -> None:
        bunch = load_digits()
        assert size == 8
        self.count = 400 if (config or {}).get("twice") else 200
        self.images = np.repeat(bunch.images[-200:, :, :, None].astype("float32") / 8 - 1, 3, axis=3)
        self.labels = bunch.target[-200:]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index % 200], "class_label": int(self.labels[index % 200])}


REAL = f"{__name__}.RealDigits"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """samples.pt, held.pt, samples.npz (NHWC, labels as a column) and real.pt with colour digits of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("digits")
    bunch = load_digits()
    images = (torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 8 - 1).repeat(1, 3, 1, 1)
    samples = SampleSet(images, torch.tensor(bunch.target))
    for name, start, stop in (("samples", 0, 600), ("held", 600, 800), ("real", 1597, 1797)):
        samples.subset(torch.arange(start, stop)).save(folder / f"{name}.pt")
    pixels = ((images[:60].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    np.savez(folder / "samples.npz", x=pixels, y=bunch.target[:60, None])
    return folder


def published(files: Path, *more: object) -> list[object]:
    given = ["--train_data", files / "samples.pt", "--val_data", REAL, "--model", "mlp", "--device", "cpu"]
    return [*given, "--num_epochs", 4, "--lr", 0.02, "--bs", 50, "--T_0", 2, *more]


def test_published_spelling_with_an_honest_choice(commands: Commands, files: Path) -> None:
    more = ["--val_bs", 64, "--T_mult", 1, "--ema_beta", 0.9, "--val_period", 2, "--seed", 3, "--quiet"]
    assert commands.type(train_classifier.main, *published(files, *more, "--output", "run.pt")) == 0, commands.err
    first, model, ema, written, _ = commands.out.splitlines()
    assert written == "written to run.pt"
    assert first == "accuracy on 200 real images, epoch chosen on held-out samples"
    assert model.startswith("Model: epoch 00") and ema.startswith("EMA  : epoch 00")
    content = torch.load("run.pt", weights_only=True)
    assert content["train_losses"].shape == (4, 20)  # 500 images shown twice an epoch, 50 a step
    assert content["val_epochs"] == [1, 3]
    assert len(content["val_accuracies"]) == len(content["ema_val_accuracies"]) == 2
    assert content["selection"] == "held-out" and content["note"] == "epoch chosen on held-out samples"
    assert float(model.split()[-1]) == pytest.approx(content["test_accuracy"], abs=6e-4)
    assert content["test_accuracy"] > 0.5


def test_published_choice_is_marked(commands: Commands, files: Path) -> None:
    more = ["--selection", "best-test-epoch", "--ema_beta", 0, "--output", "run.pt"]
    assert commands.type(train_classifier.main, *published(files, *more)) == 0, commands.err
    first, model, *_ = commands.out.splitlines()
    assert "not an accuracy on unseen images" in first
    content = torch.load("run.pt", weights_only=True)
    assert content["train_losses"].shape == (4, 24), "all 600 samples train"
    assert content["test_accuracy"] == max(content["val_accuracies"]) and content["ema_val_accuracies"] == []
    assert "not an accuracy" in content["note"]
    best = content["val_accuracies"].index(max(content["val_accuracies"]))
    assert model.startswith(f"Model: epoch {best:03}")


def test_dataset_arguments_channels_and_held_out_file(commands: Commands, files: Path) -> None:
    more = ["--val_data_args", "{'size': 8, 'config': {'twice': True}}", "--image_channels", 1]
    words = published(files, *more, "--held_out", files / "held.pt", "--T_0", 0)
    words[words.index("mlp")] = "logreg"
    assert commands.type(train_classifier.main, *words) == 0, commands.err
    assert commands.out.startswith("accuracy on 400 real images")


def test_the_alias_is_the_same_command(commands: Commands, files: Path) -> None:
    alias = ROOT / "accuracy" / "train_classifier.py"
    assert commands.type(alias, *published(files, "--num_classes", 3)) == 2
    assert "3 classes are too few" in commands.err


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--val_data_args", "size=8"], "is not a dict of plain values"),
        (["--val_data_args", "{'size': [8]}"], "is not a dict of plain values"),
        (["--model", "wrn_40_5"], "unknown classifier 'wrn_40_5'; did you mean 'wrn-40-4'?"),
        (["--num_epochs", 0], "0 epochs"),
        (["--selection", "best"], "selection 'best' is unknown"),
        (["--output", "none/../../nowhere/run.pt"], "cannot write"),
    ],
)
def test_mistakes(commands: Commands, files: Path, more: list, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if line == "cannot write":
        monkeypatch.setattr("os.access", lambda *_: False)
    assert line in commands.refused(train_classifier.main, *published(files, *more))


def test_wide_resnet_from_npz(commands: Commands, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def small(name: str, **given: object) -> WideResNet:
        asked.append((name, given["wrn_dropout"]))
        return WideResNet(3, 10, depth=10, width=1)

    monkeypatch.setattr(classifier_training, "build_classifier", small)
    words = [files / "samples.npz", "--test", files / "real.pt", "--epochs", 1, "--batch_size", 20, "--device", "cpu"]
    assert commands.type(acc_wrn40_4.main, *words, "--output", "wrn.json") == 0, commands.err
    first, score, written, _ = commands.out.splitlines()
    assert written == "written to wrn.json"
    assert first == "accuracy on 200 real images, last epoch, nothing chosen" and score.startswith("WRN-40-4: ")
    assert asked == [("wrn-40-4", 0.3)]
    assert json.loads(Path("wrn.json").read_text())["wrn-40-4"]["protocol"] == "wrn40-4, changed"
    line = commands.refused(acc_wrn40_4.main)
    assert line.startswith("samples.npz: no such file"), "the default path"


def test_cifar_downstream(commands: Commands, files: Path) -> None:
    words = ["--train", files / "samples.pt", "--test", REAL, "--models", "logreg", "--epochs", 3, "--device", "cpu"]
    assert commands.type(cifar_downstream.main, *words, "--lr", 0.01, "--batch_size", 60) == 0, commands.err
    assert commands.out.startswith("accuracy on 200 real images, epoch chosen on 100 held-out samples")
    assert commands.type(cifar_downstream.main, *words, "--selection", "best-test-epoch") == 0, commands.err
    assert commands.out.count("not an accuracy on unseen images") == 2
    assert commands.refused(cifar_downstream.main).startswith("samples.pt: no such file")
