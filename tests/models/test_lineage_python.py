"""Models, samplers and checkpoints as users of the originals call and give them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.checkpoint.lora_names import to_style
from ldm.errors import UserError
from ldm.inference import load_model
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from tests import tiny

CPU = torch.device("cpu")
SHIPPED = ["to_q", "to_k", "to_v", "to_out.Linear"]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return tiny.build(tiny.ldm()).eval()


def test_tables_of_a_schedule(model: Any) -> None:
    sampler = DDIMSampler(model)
    with pytest.raises(UserError, match="call make_schedule"):
        sampler.ddim_timesteps  # noqa: B018
    sampler.make_schedule(ddim_num_steps=10, ddim_eta=0.5, verbose=False)
    assert sampler.ddim_timesteps.tolist() == [1 + 100 * index for index in range(10)]
    levels = model.alphas_cumprod.numpy()
    alphas, previous = levels[sampler.ddim_timesteps], np.append(levels[0], levels[sampler.ddim_timesteps[:-1]])
    np.testing.assert_allclose(sampler.ddim_alphas, alphas, rtol=1e-6)
    np.testing.assert_allclose(sampler.ddim_alphas_prev, previous, rtol=1e-6)
    np.testing.assert_allclose(sampler.ddim_sqrt_one_minus_alphas, np.sqrt(1 - alphas), rtol=1e-5)
    sigmas = 0.5 * np.sqrt((1 - previous) / (1 - alphas) * (1 - alphas / previous))
    np.testing.assert_allclose(sampler.ddim_sigmas, sigmas, rtol=1e-4)
    assert sampler.ddpm_num_timesteps == 1000
    sampler.make_schedule(10, ddim_discretize="quad")
    assert np.diff(sampler.ddim_timesteps)[-1] > np.diff(sampler.ddim_timesteps)[0]
    with pytest.raises(UserError, match="PLMS cannot use"):
        PLMSSampler(model).make_schedule(10, ddim_eta=1.0)


def test_sampling_methods_of_a_model(model: Any) -> None:
    condition = model.get_learned_conditioning({"class_label": torch.tensor([1, 2, 3])})
    torch.manual_seed(1)
    samples, kept = model.sample_log(condition[:2], batch_size=2, ddim=True, ddim_steps=3, eta=1.0)
    torch.manual_seed(1)
    direct, _ = DDIMSampler(model).sample(3, 2, (2, 4, 4), condition[:2], eta=1.0)
    assert torch.equal(samples, direct) and set(kept) == {"x_inter", "pred_x0"}
    torch.manual_seed(2)
    two = model.sample(cond=condition, batch_size=2, timesteps=4)
    torch.manual_seed(2)
    direct = model.p_sample_loop(condition[:2], (2, 2, 4, 4), timesteps=4)
    assert torch.equal(two, direct)
    latents, steps = model.sample_log(condition, 3, ddim=False, ddim_steps=0, timesteps=2)
    assert latents.shape == (3, 2, 4, 4) and isinstance(steps, list)
    with pytest.raises(TypeError, match="no_such"):
        model.sample_log(condition, 3, True, 2, no_such=1)


def test_get_input_and_images(model: Any) -> None:
    batch = tiny.batch(3)
    torch.manual_seed(0)
    z, condition = model.get_input(batch, "image")
    torch.manual_seed(0)
    z2, encoded, images, decoded, raw = model.get_input(
        batch, "image", return_first_stage_outputs=True, force_c_encode=True, return_original_cond=True
    )
    assert torch.equal(z, z2) and torch.equal(condition["class_label"], raw["class_label"])
    assert torch.equal(encoded, model.get_learned_conditioning(condition))
    assert torch.equal(images, batch["image"].permute(0, 3, 1, 2)) and torch.equal(decoded, model.decode_first_stage(z))
    assert len(model.get_input(batch, "image", bs=2)[0]) == 2
    drawn = model.log_images(batch, N=2, ddim_steps=2, ddim_eta=0.0)
    assert {key: len(value) for key, value in drawn.items()} == {"inputs": 2, "reconstruction": 2, "samples": 2}
    assert set(model.log_images(batch, N=1, sample=False)) == {"inputs", "reconstruction"}


# --- checkpoints with the configurations that they came with ----------------------------------------------------------


def yaml_of(folder: Path, section: dict[str, Any]) -> str:
    return tiny.options(folder / "configs", {"model": section}).base[0]


def test_a_published_target_that_matched_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lora: dict[str, Any] = {"use_model_lora": True, "model_lora_r": 2}
    model = tiny.build(tiny.ldm(**lora, model_lora_target=SHIPPED[:3]))
    tiny.scatter(model)
    model.model_ema.reset(model.model)
    save_checkpoint({"state_dict": to_style(model.state_dict(), "peft")}, tmp_path / "dplora.ckpt")
    theirs = yaml_of(tmp_path, tiny.ldm(**lora, model_lora_target=SHIPPED))
    with caplog.at_level(logging.INFO):
        loaded = load_model(theirs, tmp_path / "dplora.ckpt", CPU)
    assert "has no adapters on to_out.Linear" in caplog.text
    x, t = torch.randn(2, 2, 4, 4), torch.tensor([1, 500])
    condition = model.get_learned_conditioning({"class_label": torch.tensor([1, 2])})
    with torch.no_grad():
        expected, found = model.eval().apply_model(x, t, condition), loaded.apply_model(x, t, condition)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match=r"take to_out.0 \(or to_out.Linear"):
        tiny.build(tiny.ldm(**lora, model_lora_target=SHIPPED, ckpt_path=str(tmp_path / "dplora.ckpt")))


def test_a_checkpoint_without_a_scale_means_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    public = tiny.public_checkpoint(tmp_path / "public.ckpt", "attention")
    assert "scale_factor" not in read_checkpoint(public)["state_dict"]
    with caplog.at_level(logging.INFO):
        model = tiny.build(tiny.ldm("attention", scale_by_std=True, scale_factor=1.0, ckpt_path=str(public)))
    assert float(model.scale_factor) == 1.0 and model.scale_is_known
    assert "holds no scale_factor: it stays 1" in caplog.text
    assert not tiny.build(tiny.ldm("attention", scale_by_std=True)).scale_is_known


def test_a_checkpoint_without_the_loss_of_its_autoencoder(tmp_path: Path) -> None:
    section = tiny.ldm("attention")
    section["params"]["first_stage_config"]["params"]["lossconfig"] = {
        "target": "ldm.modules.losses.LPIPSWithDiscriminator",
        "params": {"disc_start": 1, "perceptual_weight": 0.0, "disc_in_channels": 1},
    }
    public = tiny.public_checkpoint(tmp_path / "public.ckpt", "attention")
    model = tiny.build(section)
    assert any(key.startswith("first_stage_model.loss.") for key in model.state_dict())
    load_model(yaml_of(tmp_path, section), public, CPU)
