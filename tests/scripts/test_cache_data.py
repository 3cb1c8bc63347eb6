"""`scripts/cache_data.py` as a person types it."""

from __future__ import annotations

import numpy as np

from ldm.data.in_memory_dataset import InMemoryDataset
from ldm.data.mnist import MNISTTrain
from scripts import cache_data
from tests.data.files import write_digits
from tests.tiny_runs import ROOT, Commands, commands

__all__ = ["commands"]


def test_a_set_is_written_and_read(commands: Commands) -> None:
    write_digits(commands.folder / "digits", train=12, test=6)
    words = ("--dataset", "ldm.data.mnist.MNISTTrain", "--params", "root:digits", "size:16", "--output", "new/a.pt")
    for flags in ((), ("--uint8", "--batch_size", 5)):
        assert commands.type(ROOT / "scripts/cache_data.py", *words, *flags) == 0
        assert "new/a.pt: 12 items of ldm.data.mnist.MNISTTrain" in commands.out
        cached, source = InMemoryDataset("new/a.pt"), MNISTTrain(16, root="digits")
        assert all(np.array_equal(cached[i]["image"], source[i]["image"]) for i in range(12))
        assert cached.labels.tolist() == source.labels.tolist()


def test_mistakes(commands: Commands) -> None:
    given = ("--dataset", "ldm.data.mnist.MNISTTrain", "--params", "root:digits")
    for words, line in (
        ((*given, "--output", "a.pt"), "MNISTTrain: no train-images-idx3-ubyte"),
        ((*given, "--output", "a.npz"), "end the name in .pt"),
        (("--dataset", "MNISTTrain", "--output", "a.pt"), "is not a dotted class name"),
        ((*given, "sise:3", "--output", "a.pt"), "sise"),
        (
            ("--dataset", "ldm.data.mnist.MNISTTrain", "--params", "root", "--output", "a.pt"),
            "not of the form key=value",
        ),
    ):
        assert line in commands.refused(cache_data.main, *words)
