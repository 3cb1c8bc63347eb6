"""scripts/dpdm_downstreaming_classifier_mnist.py, in the spelling of the documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from ldm.errors import UserError
from ldm.samples import SampleSet
from scripts import dpdm_downstreaming_classifier_mnist as verb


class RealDigits:
    """The last 300 digits as a dataset class."""

    def __init__(self, size: int = 8) -> None:
        bunch = load_digits()
        self.images, self.labels = bunch.images[-300:, :, :, None].astype("float32") / 8 - 1, bunch.target[-300:]
        assert size == 8

    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "class_label": int(self.labels[index])}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.pt, val.pt and test.pt with digits of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("digits")
    bunch = load_digits()
    samples = SampleSet(
        torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(bunch.target)
    )
    for name, start, stop in (("train", 0, 900), ("val", 900, 1200), ("test", 1497, 1797)):
        samples.subset(torch.arange(start, stop)).save(folder / f"{name}.pt")
    return folder


QUICK = ["--models", "logreg", "mlp", "--epochs", "8", "--lr", "3e-3", "--device", "cpu"]


def test_readme_spelling(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb.main(["--train", str(files / "train.pt"), "--test", str(files / "test.pt"), *QUICK])
    first, logreg, mlp, both = capsys.readouterr().out.splitlines()
    assert first == "accuracy on 300 real images, epoch chosen on 150 held-out samples"
    assert float(logreg.removeprefix("Logistic regression: ").removesuffix(" %")) > 80
    assert float(mlp.removeprefix("MLP: ").removesuffix(" %")) > 80
    scores = sorted(float(line.split(": ")[1].removesuffix(" %")) for line in (logreg, mlp))
    mean = float(both.removeprefix("mean of 2 classifiers: ").split(" %")[0])
    assert mean == pytest.approx(sum(scores) / 2, abs=0.011)
    assert f"best of them: {scores[1]:.2f} % (the test images chose which)" in both


def test_held_out_file_dataset_class_seeds_and_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train", str(files / "train.pt"), "--val", str(files / "val.pt"), "--test", f"{__name__}.RealDigits"]
    verb.main([*words, *QUICK, "--seeds", "2", "--output", str(files / "scores.json")])
    assert "300 held-out" in capsys.readouterr().out
    scores = json.loads((files / "scores.json").read_text())
    assert [result["seed"] for result in scores["mlp"]["results"]] == [0, 1]
    assert len(scores["logreg"]["results"][0]["curve"]) == 8


def test_a_protocol_that_looks_at_the_test_images_says_so(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train", str(files / "train.pt"), "--test", str(files / "test.pt"), "--protocol", "dp-lora"]
    verb.main(
        [*words, "--models", "logreg", "--epochs", "2", "--output", str(files / "marked.json"), "--device", "cpu"]
    )
    first, score, *end = capsys.readouterr().out.splitlines()
    assert end[0].startswith("written to ") and end[1].startswith("next: ")
    assert "not an accuracy on unseen images" in first and "not an accuracy on unseen images" in score
    marked = json.loads((files / "marked.json").read_text())["logreg"]
    assert marked["protocol"] == "dp-lora, changed" and marked["honest"] is False


def test_real_images_choose_the_epoch_by_the_published_rule(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train", str(files / "train.pt"), "--test", str(files / "test.pt"), "--models", "logreg"]
    words += ["--protocol", "dpimagebench-published", "--epochs", "2", "--device", "cpu"]
    with pytest.raises(UserError, match="real images outside the test set; name them with --val"):
        verb.main(words)
    output = files / "published.json"
    verb.main([*words, "--val", f"{__name__}.RealDigits", "--val_args", "size:8", "--output", str(output)])
    assert "no epsilon covers the choice" in capsys.readouterr().out
    (result,) = json.loads(output.read_text())["logreg"]["results"]
    assert result["selection"] == "real-held-out" and result["honest"]
    best = max(score["average_accuracy"] for score in result["curve"])
    assert result["validation_accuracy"] == best


def test_mistakes_are_named(files: Path, tmp_path: Path) -> None:
    SampleSet(torch.zeros(3, 1, 8, 8)).save(tmp_path / "bare.pt")
    with pytest.raises(UserError, match=r"bare\.pt: no labels"):
        verb.main(["--train", str(tmp_path / "bare.pt"), "--test", str(files / "test.pt")])
    with pytest.raises(UserError, match="did you mean 'cnn'"):
        verb.main(["--train", str(files / "train.pt"), "--test", str(files / "test.pt"), "--models", "cn"])
    with pytest.raises(UserError, match="0 epochs"):
        verb.main(["--train", str(files / "train.pt"), "--test", str(files / "test.pt"), "--epochs", "0"])
