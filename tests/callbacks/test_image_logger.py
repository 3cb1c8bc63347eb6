"""When images are made, what they are called, and that making them changes nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from callbacks.image_logger import ImageLogger
from ldm.errors import UserError


class Autoencoder(nn.Module):
    """Has images to show, and no sampling."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []
        self.modes: list[bool] = []

    def log_images(self, batch: Any, count: int, **options: Any) -> dict[str, torch.Tensor]:
        self.asked.append({"count": count, **options})
        self.modes.append(self.training)
        torch.rand(5)
        return {"inputs": torch.zeros(10, 1, 8, 8), "samples": torch.full((10, 3, 8, 8), 7.0)}


class Diffusion(Autoencoder):
    """Samples in steps."""

    num_timesteps = 20
    ema_scope = None


def trainer(folder: Path, step: int, **changes: Any) -> Any:
    given = {"global_step": step, "current_epoch": 2, "default_root_dir": str(folder), "is_global_zero": True}
    return SimpleNamespace(**{**given, **changes})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def run(logger: ImageLogger, folder: Path, model: Any, steps: range, **changes: Any) -> None:
    for step in steps:
        logger.on_train_batch_end(trainer(folder, step, **changes), model, None, {}, step - 1)


def test_names_and_frequency(tmp_path: Path) -> None:
    run(ImageLogger(batch_frequency=4), tmp_path, Autoencoder(), range(9))
    wanted = [(key, step) for key in ("inputs", "samples") for step in (4, 8)]
    assert names(tmp_path) == [f"images/train/{k}_gs-{s:06}_e-000002_b-{s - 1:06}.png" for k, s in wanted]


def test_a_step_is_imaged_once_even_when_several_batches_make_it(tmp_path: Path) -> None:
    logger, model = ImageLogger(batch_frequency=2), Autoencoder()
    for batch in range(6):  # three batches a step
        logger.on_train_batch_end(trainer(tmp_path, 2 + batch // 3), model, None, {}, batch)
    assert len(model.asked) == 1


def test_the_first_step(tmp_path: Path) -> None:
    model = Autoencoder()
    run(ImageLogger(batch_frequency=4, log_first_step=True), tmp_path, model, range(4))
    assert len(model.asked) == 1 and "gs-000001" in names(tmp_path)[0]


def test_how_many_and_how_bright(tmp_path: Path) -> None:
    model = Autoencoder()
    run(ImageLogger(batch_frequency=1, max_images=3), tmp_path, model, range(1, 2))
    assert model.asked == [{"count": 3}]
    grey, colour = (Image.open(tmp_path / name) for name in names(tmp_path))
    assert grey.size == (3 * 10 + 2, 10 + 2) and grey.mode == "L"
    assert colour.getpixel((4, 4)) == (255, 255, 255), "7.0 is clamped to white"


@pytest.mark.parametrize(
    ("logger", "changes"), [(ImageLogger(1, disabled=True), {}), (ImageLogger(1), {"is_global_zero": False})]
)
def test_no_images(tmp_path: Path, logger: ImageLogger, changes: dict[str, Any]) -> None:
    model = Autoencoder()
    run(logger, tmp_path, model, range(1, 3), **changes)
    assert model.asked == [] and names(tmp_path) == []


def test_a_model_without_images(tmp_path: Path) -> None:
    run(ImageLogger(1), tmp_path, nn.Linear(1, 1), range(1, 3))
    assert names(tmp_path) == []


@pytest.mark.parametrize("training", [True, False])
def test_training_goes_on_as_if_nothing_had_been_imaged(tmp_path: Path, training: bool) -> None:
    model = Autoencoder().train(training)
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    run(ImageLogger(1), tmp_path, model, range(1, 2))
    assert torch.equal(torch.rand(3), wanted), "the random state is training's own"
    assert model.modes == [False] and model.training is training


def test_sampling_takes_no_more_steps_than_the_model_has(tmp_path: Path) -> None:
    for steps, taken in ((50, 20), (5, 5)):
        model = Diffusion()
        run(ImageLogger(1, steps=steps), tmp_path, model, range(1, 2))
        assert model.asked == [{"count": 4, "steps": taken, "private": False}]


def test_an_autoencoder_with_an_average_does_not_sample(tmp_path: Path) -> None:
    model = Autoencoder()
    model.ema_scope = lambda: None  # as a quantising autoencoder has, with and without an average
    run(ImageLogger(1), tmp_path, model, range(1, 2))
    assert model.asked == [{"count": 4}]


def test_a_private_run_is_charged_before_its_samples_are_written(tmp_path: Path) -> None:
    model, seen = Diffusion(), []
    model.private = SimpleNamespace(release=lambda: seen.append(names(tmp_path)))
    run(ImageLogger(1), tmp_path, model, range(1, 2))
    assert model.asked[0]["private"] is True
    assert seen == [[]] and len(names(tmp_path)) == 2


@pytest.mark.parametrize("name", ["batch_frequency", "max_images", "steps"])
def test_numbers_below_one(name: str) -> None:
    with pytest.raises(UserError, match=f"image_logger {name}: 0 is below 1"):
        ImageLogger(**{name: 0})
