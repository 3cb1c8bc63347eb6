"""Draws of released statistics in a file: batch by batch, by one process or several, stopped or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.inference import draws, load_model
from ldm.inference.decode import Decoder
from ldm.inference.draws import DrawsPlan, decoded_draws, write_draws
from ldm.inference.generate import batch_seed
from ldm.models.diffusion.latent_draws import LatentDraws
from ldm.privacy.statistics import ClassMixture
from ldm.samples import SampleSet
from ldm.samples.shards import Shard
from tests.tiny_runs import small_checkpoint, small_ldm, write_yaml

CPU = torch.device("cpu")
COUNT, BATCH, SEED = 11, 4, 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, tuple[int, ...]]:
    """Configuration, checkpoint and latent shape of a small model."""
    folder = tmp_path_factory.mktemp("model")
    checkpoint = small_checkpoint(folder / "model.ckpt", small_ldm())
    config = Path(write_yaml(folder / "model.yaml", {"model": small_ldm()}))
    return config, checkpoint, load_model(config, checkpoint, CPU).latent_shape


@pytest.fixture
def plan(model: tuple[Path, Path, tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DrawsPlan:
    """Eleven images of made-up statistics of three classes, in batches of four."""
    monkeypatch.setattr(draws, "PART", BATCH)
    config, checkpoint, (channels, height, width) = model
    generator, size = torch.Generator().manual_seed(3), channels * height * width

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixture = ClassMixture(
        torch.full((3,), 1 / 3).double(), torch.ones(3, 1).double(), numbers(3, 1, 2), numbers(3, 1, 2, 2)
    )
    file = tmp_path / "draws.safetensors"
    LatentDraws(mixture, numbers(size), numbers(2, size), (channels, height, width)).save(file, {})
    return DrawsPlan(file, config, checkpoint, COUNT, seed=SEED)


def test_the_images_are_decoded_draws(plan: DrawsPlan) -> None:
    made, source = decoded_draws(plan, CPU), LatentDraws.read(plan.draws)
    decode = Decoder(load_model(plan.config, plan.weights, CPU))
    assert made.labels is not None and sorted(made.labels.tolist()) == sorted([*range(3)] * 3 + [0, 1])
    for number, rows in enumerate(made.labels.split(BATCH)):
        latents = source.draw(rows, torch.Generator().manual_seed(batch_seed(SEED, number)))
        torch.testing.assert_close(made.images[number * BATCH :][: len(rows)], decode(latents))
    assert not torch.equal(made.images[0], made.images[BATCH]), "two batches have other draws"


def test_several_processes_write_the_file_of_one(plan: DrawsPlan, tmp_path: Path) -> None:
    whole, output = decoded_draws(plan, CPU), tmp_path / "a.pt"
    assert [write_draws(output, plan, CPU, Shard(index, 2)) for index in (1, 0)] == [False, True]
    made = SampleSet.load(output)
    assert torch.equal(made.images, whole.images) and made.meta == whole.meta
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "draws.safetensors"]


@pytest.mark.parametrize("seed", [SEED, None])
def test_a_run_that_was_stopped_goes_on(
    plan: DrawsPlan, seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = DrawsPlan(plan.draws, plan.config, plan.weights, COUNT, seed=seed)
    decode, calls = Decoder.__call__, []

    def stopped(self: Decoder, latents: Tensor) -> Tensor:
        calls.append(len(latents))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(self, latents)

    monkeypatch.setattr(Decoder, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_draws(tmp_path / "a.pt", plan, CPU)
    assert not (tmp_path / "a.pt").exists()
    assert write_draws(tmp_path / "a.pt", plan, CPU)
    assert calls == [4, 4, 3, 3], "two batches were on disk"
    made = SampleSet.load(tmp_path / "a.pt")
    used = DrawsPlan(plan.draws, plan.config, plan.weights, COUNT, seed=made.meta["seed"])
    assert torch.equal(made.images, decoded_draws(used, CPU).images)


def test_what_cannot_be_drawn(plan: DrawsPlan, tmp_path: Path) -> None:
    other = DrawsPlan(plan.draws, plan.config, plan.weights, COUNT, classes=[5])
    with pytest.raises(UserError, match="statistics of 3 classes were released"):
        decoded_draws(other, CPU)
    unseeded = DrawsPlan(plan.draws, plan.config, plan.weights, COUNT)
    with pytest.raises(UserError, match="several processes need one seed"):
        write_draws(tmp_path / "a.pt", unseeded, CPU, Shard(0, 2))
    with pytest.raises(UserError, match="0 samples asked for"):
        DrawsPlan(plan.draws, plan.config, plan.weights, 0)
