"""scripts/nearest_neighbours.py and scripts/membership.py, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ldm.privacy.card import ReleaseCard
from ldm.samples import SampleSet
from scripts import membership, nearest_neighbours
from tests.tiny_runs import Commands, commands, small_checkpoint, small_ldm, write_yaml

__all__ = ["commands"]


def images(count: int, seed: int) -> SampleSet:
    generator = torch.Generator().manual_seed(seed)
    images = (torch.randn(count, 1, 8, 8, generator=generator) / 2).clamp(-1, 1)
    return SampleSet(images, torch.arange(count) % 10)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """private.pt, held_out.pt, copies.pt (of private images) and a tiny model."""
    folder = tmp_path_factory.mktemp("leakage")
    private = images(80, 0)
    private.save(folder / "private.pt")
    images(120, 1).save(folder / "held_out.pt")
    private.subset(torch.arange(20, 50)).save(folder / "copies.pt")
    small_checkpoint(folder / "model.ckpt", small_ldm())
    write_yaml(folder / "model.yaml", {"model": small_ldm()})
    return folder


def looking(files: Path, *more: object) -> list[object]:
    given = ["--samples", files / "copies.pt", "--private", files / "private.pt", "--held_out", files / "held_out.pt"]
    return [*given, "--device", "cpu", *more]


def test_copies_are_reported_and_drawn(commands: Commands, files: Path) -> None:
    more = ["--picture", "pairs.png", "--i-hold-the-private-data", "--output", "copies.json", "--extractor", "pixels"]
    assert commands.type(nearest_neighbours.main, *looking(files, *more, "--pairs", 6)) == 0, commands.err
    lines = commands.out.splitlines()
    assert "not covered by any (epsilon, delta)" in lines[0]
    assert lines[1].startswith("pixels, root mean square: 100.00 % of 30 samples are near-copies")
    assert lines[2].startswith("pixels: 100.00 %") and lines[3] == "pairs.PRIVATE.png: shows private images"
    assert Path("pairs.PRIVATE.png").is_file() and not Path("pairs.png").exists()
    content = json.loads(Path("copies.json").read_text())
    assert [result["copying"] for result in content] == [True, True]
    assert all("private images" in result["warning"] for result in content)


def test_no_image_without_the_word(commands: Commands, files: Path) -> None:
    line = commands.refused(nearest_neighbours.main, *looking(files, "--picture", "pairs.png"))
    assert "--i-hold-the-private-data" in line
    assert commands.type(nearest_neighbours.main, *looking(files, "--count", 10)) == 0, commands.err
    assert "of 10 samples" in commands.out and "of 5 held-out images" in commands.out
    assert not list(Path().glob("*.png"))


def attacking(files: Path, *more: object) -> list[object]:
    given = ["--yaml", files / "model.yaml", "--ckpt", files / "model.ckpt", "--members", files / "private.pt"]
    return [*given, "--held_out", files / "held_out.pt", "--draws", 2, "--count", 40, "--device", "cpu", *more]


def test_membership(commands: Commands, files: Path) -> None:
    more = ["--epsilon", 1, "--delta", 1e-5, "--reference_ckpt", files / "model.ckpt", "--no-ema"]
    words = attacking(files, *more, "--plot", "roc.png", "--output", "attack.json")
    assert commands.type(membership.main, *words) == 0, commands.err
    first, plain, calibrated, written, following = commands.out.splitlines()
    assert written == "written to roc.png, attack.json" and following.startswith("next: dp-ldm audit RUN")
    assert first.startswith("40 members, 40 held-out images; computed from private images")
    # the advantage that epsilon allows is an upper bound: 0.4621 is rounded up
    assert plain.startswith("loss threshold: AUC 0.") and plain.endswith("allow 0.463: within the guarantee")
    assert calibrated.startswith("loss threshold, calibrated: AUC 0.500"), "a model calibrated by itself says nothing"
    content = json.loads(Path("attack.json").read_text())
    assert [result["epsilon"] for result in content] == [1.0, 1.0] and Path("roc.png").is_file()


def test_the_card_gives_epsilon(commands: Commands, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        def epsilons(self) -> dict[str, float]:
            return {"pld": 2.5, "rdp": 3.0}

        class plan:
            delta = 1e-4

    monkeypatch.setattr(ReleaseCard, "read", classmethod(lambda cls, path: Card()))
    assert commands.type(membership.main, *attacking(files, "--card", "privacy.json")) == 0, commands.err
    assert "epsilon 2.5, delta 0.0001 allow" in commands.out


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--epsilon", 1], "--epsilon and --delta belong together"),
        (["--card", "none.json"], "none.json"),
        (["--draws", 0], "draws: 0 is below 1"),
        (["--plot", "roc.txt"], "end the name in .png"),
        (["--epsilon", -1, "--delta", 0.1], "epsilon -1.0 must be at least 0"),
    ],
)
def test_mistakes(commands: Commands, files: Path, more: list, line: str) -> None:
    assert line in commands.refused(membership.main, *attacking(files, *more))
