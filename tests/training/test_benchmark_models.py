"""The shipped public models of the benchmarks: they load with their configurations, and belong together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint import read_checkpoint
from ldm.config import instantiate_from_config
from ldm.data.garments import NAMES, garment
from ldm.data.rendering.strokes import HandRange, random_hands, write
from ldm.inference.generate import SamplingOptions, sample_images
from ldm.inference.load import load_model
from tests.tiny_runs import ROOT

CONFIGS, SHIPPED = ROOT / "configs" / "benchmark", ROOT / "checkpoints"
AUTOENCODER = SHIPPED / "images32-autoencoder.safetensors"


def autoencoder() -> torch.nn.Module:
    section = OmegaConf.to_container(OmegaConf.load(CONFIGS / "public-autoencoder.yaml").model)
    params = {"embed_dim": section["params"]["embed_dim"], "ddconfig": section["params"]["ddconfig"]}
    params |= {"lossconfig": {"target": "torch.nn.Identity"}, "ckpt_path": str(AUTOENCODER)}
    return instantiate_from_config({"target": section["target"], "params": params}).eval()


def as_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.pad(pixels, ((0, 0), (2, 2), (2, 2)))).float()[:, None] / 127.5 - 1.0


@torch.no_grad()
def test_autoencoder_restores_garments_and_digits():
    model = autoencoder()
    clothes = as_images(np.stack([garment(kind, 9, 1, kind) for kind in range(len(NAMES))]))
    uniform, normal = random_hands(9, 1, 0)
    digits = as_images(write(np.arange(10), uniform[:10], normal[:10], HandRange()))
    for images in (clothes, digits):
        posterior = model.encode(images)
        assert posterior.mode().shape == (10, 4, 8, 8)
        error = (model.decode(posterior.mode()) - images).square().mean()
        blurred = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(images, 2), scale_factor=2.0)
        assert error < 0.5 * (blurred - images).square().mean() and error < 0.03


@pytest.mark.parametrize("name", ["digits", "clothes"])
def test_diffusion_models_live_in_the_autoencoders_latents(name):
    stored = read_checkpoint(SHIPPED / f"{name}32-ldm.safetensors").state_dict
    own = read_checkpoint(AUTOENCODER).state_dict
    inside = {key: value for key, value in own.items() if key.startswith(("encoder.", "quant_conv."))}
    assert inside
    for key, value in inside.items():
        there = stored[f"first_stage_model.{key}"]
        assert torch.equal(there, value.to(there.dtype))  # a file in half precision holds the rounded encoder


@pytest.mark.parametrize("name", ["digits", "clothes"])
def test_diffusion_models_sample_what_is_asked_for(name):
    model = load_model(CONFIGS / f"public-{name}.yaml", SHIPPED / f"{name}32-ldm.safetensors", torch.device("cpu"))
    options = SamplingOptions(steps=6, eta=0.0, guidance=1.5, sampler="dpm", seed=0)
    labels = torch.tensor([1] * 8 + [8] * 8)
    images = sample_images(model, 16, options, labels, progress=False)
    assert images.shape == (16, 1, 32, 32) and images.abs().max() <= 1.0
    ones, eights = (images[part] for part in (slice(0, 8), slice(8, 16)))
    assert ones.mean() < eights.mean()  # a one has less ink than an eight, trousers less cloth than a bag


@pytest.mark.parametrize("name", ["autoencoder", "decoder", "digits", "clothes"])
def test_configurations_name_what_exists(name):
    config = OmegaConf.load(CONFIGS / f"public-{name}.yaml")
    for part in config.data.params.train.params.parts:
        module, _, kind = part.target.rpartition(".")
        assert hasattr(__import__(module, fromlist=[kind]), kind)
