"""Losses of single images under a model: fixed draws, the model's own loss, and a memorising model is caught."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.errors import UserError
from ldm.reports import membership as membership_run
from ldm.reports.membership import (
    LossOptions,
    SampleItems,
    chosen_records,
    image_losses,
    infer_membership,
    open_records,
)
from ldm.samples import SampleSet
from tests import tiny
from tests.tiny_runs import small_checkpoint, small_ldm, write_yaml

QUICK = LossOptions(draws=3, count=50, batch_size=4, seed=5)


def records(count: int, seed: int = 0) -> SampleItems:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, tiny.SIDE, tiny.SIDE, generator=generator) * 2 - 1
    return SampleItems(SampleSet(images, torch.arange(count) % tiny.CLASSES))


@pytest.fixture(scope="module")
def model():
    built = tiny.build(small_ldm())
    tiny.scatter(built)
    return built.eval()


def test_the_loss_is_the_mean_of_the_model_s_own(model) -> None:
    data = records(6)
    losses = image_losses(model, data, QUICK)
    noises = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    for index in range(6):
        item = data[index]
        batch = {"image": item["image"][None], "class_label": torch.tensor([item["class_label"]])}
        posterior = model.encode_first_stage(batch["image"].permute(0, 3, 1, 2).contiguous())
        latent = model.scale_factor * posterior.mode()
        condition = model.get_learned_conditioning({"class_label": batch["class_label"]})
        terms = [
            model.loss_terms(latent, torch.tensor([time]), noise[None], condition)["simple"].item()
            for time, noise in zip((166, 500, 833), noises, strict=True)
        ]
        assert losses[index] == pytest.approx(np.mean(terms), rel=1e-5)


def test_losses_do_not_depend_on_batches_or_on_the_caller_s_random_state(model) -> None:
    data = records(7)
    torch.manual_seed(0)
    first = image_losses(model, data, QUICK)
    assert first.shape == (7,) and len(set(first.tolist())) == 7
    torch.manual_seed(1)
    assert np.allclose(image_losses(model, data, LossOptions(3, 50, 7, 5)), first, rtol=1e-5)
    assert not np.allclose(image_losses(model, data, LossOptions(3, 50, 4, 6)), first)


def test_records_are_chosen_by_the_seed() -> None:
    data = records(20)
    chosen = chosen_records(data, LossOptions(count=5, seed=1))
    assert len(set(chosen)) == 5 and chosen == sorted(chosen)
    assert chosen == chosen_records(data, LossOptions(count=5, seed=1))
    assert chosen != chosen_records(data, LossOptions(count=5, seed=2))
    assert chosen_records(data, LossOptions(count=50)) == list(range(20))


def remember(model, members: SampleItems) -> None:
    """Halve the model's error on its members and nowhere else, as a memory of them would."""
    images = torch.stack([members[index]["image"] for index in range(len(members))])
    moments = model.encode_moments(images.permute(0, 3, 1, 2).contiguous())
    known, terms = model.scale_factor * moments[:, : model.channels].flatten(1), model.loss_terms

    def remembering(latents, times, noise, condition=None):
        simple = terms(latents, times, noise, condition)["simple"]
        seen = (torch.cdist(latents.flatten(1), known) < 1e-3).any(dim=1)
        return {"simple": torch.where(seen, 0.5 * simple, simple)}

    model.loss_terms = remembering


def test_a_model_that_memorised_is_caught_and_a_fresh_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = small_ldm()
    checkpoint = small_checkpoint(tmp_path / "model.ckpt", section)
    config = write_yaml(tmp_path / "model.yaml", {"model": section})
    members, held_out = records(64), records(64, seed=1)
    options = LossOptions(draws=2, count=64, batch_size=64)
    given = {"budget": (0.1, 1e-5), "device": torch.device("cpu"), "ema": False}
    (fresh,) = infer_membership(config, checkpoint, members, held_out, options, **given)
    assert fresh.auc_interval[0] < 0.5 < fresh.auc_interval[1] and not fresh.exceeds

    load, loaded = membership_run.load_model, []

    def loading(*arguments):
        model = load(*arguments)
        loaded.append(arguments[1])
        if len(loaded) == 1:
            remember(model, members)
        return model

    monkeypatch.setattr(membership_run, "load_model", loading)
    plain, calibrated = infer_membership(
        config, checkpoint, members, held_out, options, reference=(config, checkpoint), **given
    )
    assert loaded == [checkpoint] * 2
    assert plain.auc > 0.9 and plain.exceeds and plain.epsilon == 0.1
    assert calibrated.attack == "loss threshold, calibrated"
    assert calibrated.auc == 1.0, "what is left of the losses is the memory alone"


def test_records_come_from_files_and_classes(tmp_path: Path) -> None:
    samples = SampleSet(torch.zeros(3, 1, 8, 8), torch.tensor([2, 1, 0]))
    samples.save(tmp_path / "private.pt")
    opened = open_records(str(tmp_path / "private.pt"))
    assert len(opened) == 3 and opened[0]["image"].shape == (8, 8, 1) and opened[0]["class_label"] == 2
    with pytest.raises(UserError, match="only go with a dataset class"):
        open_records(str(tmp_path / "private.pt"), ["size:8"])
    tiny.write_digits(tmp_path / "digits", 5)
    digits = open_records("ldm.data.mnist.MNISTTrain", [f"root:{tmp_path / 'digits'}", "size:8", "channels:1"])
    assert len(digits) == 5


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match="draws: 0 is below 1"):
        LossOptions(draws=0)
