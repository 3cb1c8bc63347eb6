"""Every configuration of a public model builds exactly the tensors of the released checkpoint, in its order.

The models are built on the meta device, so that nothing is allocated.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.config import instantiate_from_config, load_config
from tests import state_dicts

CONFIGS = Path(__file__).parents[1] / "configs"
KL_NAMES = {"kl-f4": "64x64x3", "kl-f8": "32x32x4", "kl-f16": "16x16x16", "kl-f32": "8x8x64"}
FIRST_STAGES = sorted(name for name in state_dicts.names() if name.startswith("first_stage_"))
DIFFUSION = {
    "ldm_celeba256": "celebahq-ldm-vq-4",
    "ldm_cin256": "cin-ldm-vq-f8",
    "ldm_ffhq256": "ffhq-ldm-vq-4",
    "ldm_lsun_beds256": "lsun_bedrooms-ldm-vq-4",
    "ldm_lsun_churches256": "lsun_churches-ldm-kl-8",
    "ldm_text2img256": "text2img256",
    "ldm_txt2img-1p4B-eval": "txt2img-1p4B-eval",
    "dpldm_cin256-v2": "cin256-v2",
}


def build(file: str) -> torch.nn.Module:
    section = load_config([CONFIGS / file]).model
    with torch.device("meta"):
        return instantiate_from_config({"target": section.target, "params": section.params})


def assert_is(model: torch.nn.Module, listing: str) -> None:
    state = model.state_dict()
    state_dicts.assert_same_keys(state, listing)
    assert list(state) == list(state_dicts.listing(listing))


def test_every_public_model_has_a_configuration():
    assert {name for name in state_dicts.names() if name.startswith("ldm_")} == set(DIFFUSION) - {"dpldm_cin256-v2"}
    assert len(FIRST_STAGES) == len(list((CONFIGS / "first_stage_models").glob("*.yaml")))


@pytest.mark.parametrize("listing", FIRST_STAGES)
def test_first_stage(listing):
    assert_is(build(f"first_stage_models/{listing.removeprefix('first_stage_')}.yaml"), listing)


@pytest.mark.parametrize("name", KL_NAMES)
def test_training_file_is_of_the_same_network(name):
    """The file that trains a KL autoencoder and the one that loads the released weights say the same."""
    trains = load_config([CONFIGS / "autoencoder" / f"autoencoder_kl_{KL_NAMES[name]}.yaml"])
    loads = load_config([CONFIGS / "first_stage_models" / f"{name}.yaml"])
    assert trains.model == loads.model
    assert trains.model.params.embed_dim == trains.model.params.ddconfig.z_channels


@pytest.mark.parametrize("listing", DIFFUSION)
def test_latent_diffusion(listing):
    config = f"latent-diffusion/{DIFFUSION[listing]}.yaml"
    model = build(config)
    assert_is(model, listing)
    assert model.image_size * 2 ** (model.first_stage_model.encoder.num_resolutions - 1) == 256
    assert not any(parameter.requires_grad for parameter in model.first_stage_model.parameters())
