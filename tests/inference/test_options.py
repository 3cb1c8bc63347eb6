"""Options of sampling: defaults by sampler, the names of earlier versions, and the precision that a device has."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
import torch

from ldm.cli import ArgumentParser
from ldm.errors import UserError
from ldm.inference import SamplingOptions
from ldm.inference.decode import Decoder, supported_precision
from ldm.inference.generate import SAMPLERS as CLASSES
from ldm.inference.generate import sample_images
from ldm.inference.options import DEFAULT_SAMPLER, DEFAULT_STEPS, LINEAGE_STEPS, SAMPLERS
from ldm.models.diffusion.guidance import Autoguided, guided_noise
from ldm.reports.flags import add_sampling_flags, sampling_options
from tests import tiny
from tests.models.gaussian import Gaussian
from tests.tiny_runs import small_ldm

CPU = torch.device("cpu")


def read(*words: str, **defaults: float) -> SamplingOptions:
    parser = ArgumentParser()
    add_sampling_flags(parser, **defaults)  # type: ignore[arg-type]
    return sampling_options(parser.parse_args(words))


def test_every_sampler_has_a_class_and_default_steps() -> None:
    assert set(SAMPLERS) == set(CLASSES) == set(DEFAULT_STEPS) and DEFAULT_SAMPLER in SAMPLERS
    for name in SAMPLERS:
        options = SamplingOptions(sampler=name)
        assert options.steps == DEFAULT_STEPS[name] and options.eta == (1.0 if name == "ddim" else 0.0)


def test_flags_and_their_published_spellings() -> None:
    for spelling in ("--steps", "--ddim_steps", "--ddim_step", "-step"):
        assert read(spelling, "7").steps == 7
    for spelling in ("--guidance", "--scale", "-scale", "--uc_scale"):
        assert read(spelling, "3").guidance == 3.0
    for spelling in ("--eta", "-eta", "--ddim_eta"):
        assert read("--sampler", "ddim", spelling, "0.5").eta == 0.5
    for spelling in ("--batch_size", "-bs", "--bs"):
        assert read(spelling, "9").batch_size == 9
    assert read("--plms").sampler == "plms"
    assert read("--dpm_solver").sampler == read("--sampler", "dpm").sampler == "dpm-solver++"
    assert read(guidance=5.0).guidance == 5.0
    lineage = read("--lineage")
    assert (lineage.sampler, lineage.steps, lineage.eta) == ("ddim", LINEAGE_STEPS, 1.0) and LINEAGE_STEPS == 200
    with pytest.raises(UserError, match="--lineage sets sampler, steps and eta itself"):
        read("--lineage", "--eta", "0")


def test_sections_of_configurations() -> None:
    assert SamplingOptions.read({"sampler": "dpm", "scale": 2.0, "steps": 5}) == SamplingOptions(
        sampler="dpm-solver++", guidance=2.0, steps=5
    )
    with pytest.raises(UserError, match="unknown option 'step'; did you mean 'steps'"):
        SamplingOptions.read({"step": 5})
    with pytest.raises(UserError, match="precision: 'fp16' is unknown; choose one of fp32"):
        SamplingOptions(precision="fp16")


def test_options_are_checked_without_torch() -> None:
    code = "import sys, ldm.inference as i; i.SamplingOptions(); i.SamplingRequest; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_precision_falls_back_where_there_is_no_bfloat16(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert supported_precision("bf16-decode", CPU) == "fp32" and "has no bfloat16 arithmetic" in caplog.text
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert supported_precision("bf16-decode", CPU) == "bf16-decode"
    assert supported_precision("fp32", CPU) == "fp32"


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    built = tiny.build(small_ldm("attention"))
    tiny.scatter(built, seed=1)
    return built.eval()


def test_the_decoder_agrees_with_the_plain_path(model: torch.nn.Module) -> None:
    latents = torch.randn(5, model.channels, model.image_size, model.image_size)
    with torch.no_grad():
        plain = model.decode_first_stage(latents).clamp(-1, 1)
    for part in (None, 2):
        torch.testing.assert_close(Decoder(model, part)(latents), plain, rtol=1e-4, atol=1e-5)
    lower = Decoder(model, None, "bf16-decode")(latents)
    assert lower.dtype == torch.float32 and not torch.equal(lower, plain)
    assert (lower - plain).abs().max() < 0.05
    assert Decoder(model)(latents).is_contiguous()


def test_lower_precision_stays_close(model: torch.nn.Module) -> None:
    images = {
        name: sample_images(model, 4, SamplingOptions(steps=3, eta=0.0, seed=0, precision=name), progress=False)
        for name in ("fp32", "bf16-decode", "bf16")
    }
    for name in ("bf16-decode", "bf16"):
        assert images[name].dtype == torch.float32 and not torch.equal(images[name], images["fp32"])
        assert (images[name] - images["fp32"]).abs().mean() < 0.05


def test_autoguidance_leads_away_from_the_weaker_model() -> None:
    strong, weak = Gaussian(0.25), Gaussian(1.0)
    x, t = torch.randn(3, 1, 2, 2), torch.full((3,), 500)
    pair = (None, None)
    both = [model.apply_model(x, t, None) for model in (strong, weak)]
    for scale in (1.0, 2.5):
        for model in (strong, weak):
            model.sqrt_alphas_cumprod = model.alphas_cumprod.sqrt()
            model.sqrt_one_minus_alphas_cumprod = (1 - model.alphas_cumprod).sqrt()
            model.num_timesteps = 1000
        found = guided_noise(Autoguided(strong, weak, scale), x, t, pair)
        torch.testing.assert_close(found, both[1] + scale * (both[0] - both[1]))
    other = Gaussian(steps=500)
    with pytest.raises(UserError, match="another noise schedule"):
        Autoguided(strong, other, 2.0)


def test_namespace_has_every_setting() -> None:
    parser = ArgumentParser()
    add_sampling_flags(parser)
    given = parser.parse_args(["--uc", "3", "--decoder_batch_size", "2", "--compile", "--precision", "bf16"])
    assert isinstance(given, argparse.Namespace)
    options = sampling_options(given, height=16)
    assert (options.uncond_class, options.decoder_batch_size, options.compile) == (3, 2, True)
    assert (options.precision, options.height) == ("bf16", 16)


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf"])
def test_a_scale_of_guidance_that_is_no_number_is_refused(scale: str) -> None:
    with pytest.raises(UserError, match=f"guidance: {scale} is no scale"):
        read(f"--guidance={scale}")
