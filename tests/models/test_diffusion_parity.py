"""Diffusion, schedules and samplers give the numbers of the public lineage code."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.ddpm_base import DDPM
from tests import parity

TINY_UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": 4,
        "in_channels": 1,
        "out_channels": 1,
        "model_channels": 32,
        "attention_resolutions": [],
        "num_res_blocks": 1,
        "channel_mult": [1],
        "num_heads": 1,
    },
}


def built(entry):
    model = (
        entry["params"]["model"] if "model" in entry["params"] else {"class": entry["class"], "params": entry["params"]}
    )
    return parity.build({**entry, "class": model["class"], "params": model["params"]}, strict=False)


class Draws:
    """Stands in for torch.randn and torch.randn_like, giving prepared noise in order."""

    def __init__(self, *noises):
        self.noises = [part for noise in noises for part in noise]
        self.used = 0

    def __call__(self, *args, **kwargs):
        self.used += 1
        return self.noises[self.used - 1]

    def __enter__(self):
        self.patches = [mock.patch("torch.randn", self), mock.patch("torch.randn_like", self)]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *error):
        for patch in self.patches:
            patch.stop()


@pytest.mark.parametrize("entry", parity.entries("schedule"), ids=parity.name)
def test_schedule_buffers(entry):
    model = DDPM(**{**entry["params"], "unet_config": TINY_UNET})
    for name in entry["outputs"]:
        parity.check(name, getattr(model, name), entry)
    assert "lvlb_weights" not in model.state_dict()


def test_forward_process():
    entry = parity.entry("ldm_class.q")
    model, (inputs, _) = built(entry), parity.io(entry)
    x, t, noise = inputs["x_start"], inputs["t"], inputs["noise"]
    x_t = model.q_sample(x, t, noise=noise)
    parity.check("x_t", x_t, entry)
    for name, value in zip(("q_mean", "q_var", "q_logvar"), model.q_mean_variance(x, t), strict=True):
        parity.check(name, value, entry)
    parity.check("x0_from_noise", model.predict_start_from_noise(x_t, t, noise), entry)
    for name, value in zip(("post_mean", "post_var", "post_logvar"), model.q_posterior(x, x_t, t), strict=True):
        parity.check(name, value, entry)


def test_network_under_a_condition():
    entry = parity.entry("ldm_class.apply_model")
    model, (inputs, _) = built(entry), parity.io(entry)
    cond = model.get_learned_conditioning({"class_label": inputs["labels"]})
    parity.check("c", cond, entry)
    parity.check("eps", model.apply_model(inputs["x_t"], inputs["t"], cond), entry)


@pytest.mark.parametrize("case", ["ldm_class.first_stage", "ldm_uncond.first_stage"])
def test_first_stage(case):
    entry = parity.entry(case)
    model, (inputs, _) = built(entry), parity.io(entry)
    posterior = model.encode_first_stage(inputs["image"])
    parity.check("z_mode", model.scale_factor * posterior.mode(), entry)
    with Draws([inputs["noise"]]):
        parity.check("z_enc", model.get_first_stage_encoding(posterior), entry)
    parity.check("dec", model.decode_first_stage(inputs["z"]), entry)


def test_batch_to_latents_and_labels():
    entry = parity.entry("ldm_class.get_input")
    model, (inputs, _) = built(entry), parity.io(entry)
    with Draws([inputs["noise"]]):
        z, cond = model.get_input({"image": inputs["image_hwc"], "class_label": inputs["labels"]}, "image")
    parity.check("z", z, entry)
    assert torch.equal(cond["class_label"], inputs["labels"])


@pytest.mark.parametrize("entry", parity.entries("diffusion", "ldm_class.loss"), ids=parity.name)
def test_latent_losses(entry):
    model, (inputs, _) = built(entry), parity.io(entry)
    loss, report = model.p_losses(inputs["x_start"], inputs["cond"], inputs["t"], noise=inputs["noise"])
    parity.check("loss", loss, entry)
    for name in set(entry["outputs"]) - {"loss"}:
        parity.check(name, report[name.replace("__", "/")], entry)


def test_pixel_loss():
    entry = parity.entry("ddpm.loss.eps_l2_elbo")
    model, (inputs, _) = built(entry), parity.io(entry)
    loss, report = model.p_losses(inputs["x_start"], inputs["t"], noise=inputs["noise"])
    parity.check("loss", loss, entry)
    for name in set(entry["outputs"]) - {"loss"}:
        parity.check(name, report[name.replace("__", "/")], entry)


def test_gradients_of_every_parameter():
    entry = parity.entry("ldm_class.grads")
    model, (inputs, _) = built(entry), parity.io(entry)
    cond = model.get_learned_conditioning({"class_label": inputs["labels"]})
    loss, _ = model.p_losses(inputs["x_start"], cond, inputs["t"], noise=inputs["noise"])
    loss.backward()
    named = dict(model.named_parameters())
    grads = [named[name].grad for name in entry["parameters"]]
    parity.check("norm", torch.stack([g.norm() for g in grads]), entry)
    parity.check("sum", torch.stack([g.sum() for g in grads]), entry)


def test_rows_average_to_the_loss():
    entry = parity.entry("ldm_class.loss.eps_l2")
    model, (inputs, _) = built(entry), parity.io(entry)
    terms = model.loss_terms(inputs["x_start"], inputs["t"], inputs["noise"], inputs["cond"])
    parity.check("loss", terms["loss"].mean(), entry)


@pytest.mark.parametrize(
    "entry", [e for e in parity.entries("sampling", "ddim") if "text" not in e["id"]], ids=parity.name
)
def test_ddim(entry):
    model, (inputs, _) = built(entry), parity.io(entry)
    steps, eta = entry["params"]["S"], entry["params"].get("eta", 0.0)
    options = {key: inputs[key] for key in ("mask", "x0") if key in inputs}
    if "uc" in inputs:
        options |= {
            "unconditional_guidance_scale": entry["params"]["unconditional_guidance_scale"],
            "unconditional_conditioning": inputs["uc"],
        }
    # where S does not divide T the lineage visits more than S timesteps, ours exactly S: give it the lineage's
    grid = list(range(1, 1000, 1000 // steps)) if 1000 % steps else None
    with Draws(inputs.get("q_noise", inputs.get("noise", []))):
        samples, kept = DDIMSampler(model).sample(
            steps,
            2,
            inputs["x_T"].shape[1:],
            inputs.get("c"),
            x_T=inputs["x_T"],
            eta=eta,
            timesteps=grid,
            log_every_t=1,
            **options,
        )
    parity.check("samples", samples, entry)
    parity.check("x_inter", torch.stack(kept["x_inter"]), entry)
    parity.check("pred_x0", torch.stack(kept["pred_x0"]), entry)


def test_ancestral_sampling():
    entry = parity.entry("ancestral.class.start6")
    model, (inputs, _) = built(entry), parity.io(entry)
    with Draws(inputs["noise"]):
        samples, kept = model.p_sample_loop(
            inputs["c"], inputs["x_T"].shape, return_intermediates=True, x_T=inputs["x_T"], start_T=6, log_every_t=1
        )
    parity.check("samples", samples, entry)
    parity.check("x_inter", torch.stack(kept), entry)


def test_progressive_denoising():
    entry = parity.entry("progressive.class.start6")
    model, (inputs, _) = built(entry), parity.io(entry)
    with Draws(inputs["noise"]):
        samples, kept = model.progressive_denoising(
            inputs["c"], inputs["x_T"].shape, x_T=inputs["x_T"], start_T=6, log_every_t=1, temperature=0.5
        )
    parity.check("samples", samples, entry)
    parity.check("pred_x0", torch.stack(kept), entry)


def test_latent_diffusion_is_a_ddpm():
    assert issubclass(LatentDiffusion, DDPM)
