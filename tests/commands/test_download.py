"""--download: every command that reads a public data set can fetch it, and no command does so unasked."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from ldm.data.mnist import MNISTTrain
from ldm.errors import UserError
from ldm.files import DOWNLOAD_VARIABLE
from tests.data.files import write_digits

COMMANDS = {
    "main": ["--base", "none.yaml", "-t", "true"],
    "ldm.commands.train": ["none.yaml"],
    "ldm.commands.evaluate": ["--samples", "none.pt", "--real", "ldm.data.mnist.MNISTTrain"],
    "scripts.train_classifier": ["--train_data", "none.pt", "--val_data", "ldm.data.mnist.MNISTVal", "--model", "cnn"],
    "scripts.dpdm_downstreaming_classifier_mnist": ["--train", "none.pt", "--test", "ldm.data.mnist.MNISTVal"],
    "scripts.cifar_downstream": ["--train", "none.pt"],
    "scripts.acc_wrn40_4": ["none.npz"],
    "scripts.mnist_sampling_and_acc": ["--yaml", "none.yaml", "--ckpt", "none.ckpt"],
    "scripts.nearest_neighbours": ["--samples", "none.pt", "--private", "none.pt", "--held_out", "none.pt"],
    "scripts.cache_data": ["--dataset", "ldm.data.none.None", "--output", "a.pt"],
    "fid.compute_dataset_stats": ["--dataset", "none/none", "--output", "a.npz"],
    "fid.compute_fid": ["--path1", "none.npz", "--path2", "none.npz"],
    "fid.train_digits_cnn": ["--dataset", "none.pt", "--output", "a.safetensors"],
}


@pytest.fixture(autouse=True)
def not_allowed_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(DOWNLOAD_VARIABLE, "0")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_takes_the_flag(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    words = [*COMMANDS[name], "--download"]
    monkeypatch.setattr("sys.argv", [name, *words])
    with pytest.raises((UserError, SystemExit)) as caught:
        module.main() if name == "main" else module.main(words)
    assert "none" in str(caught.value).lower(), "not the flag but the missing file is refused"
    assert os.environ[DOWNLOAD_VARIABLE] == "1"


def test_the_files_are_fetched_only_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Fetching:
        def __init__(self, root: str, download: bool):
            assert download
            write_digits(Path(root) / "MNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.MNIST", Fetching)
    options: dict[str, Any] = {"root": tmp_path / "data"}
    with pytest.raises(UserError, match="--download behind main.py"):
        MNISTTrain(**options)
    monkeypatch.setenv(DOWNLOAD_VARIABLE, "1")
    assert len(MNISTTrain(**options)) == 40
