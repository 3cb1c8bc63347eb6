"""Full-size UNets have exactly the tensors of the public checkpoints, in the same order."""

from __future__ import annotations

import pytest
import torch

from ldm.modules.diffusionmodules.openaimodel import UNetModel
from tests import state_dicts

PREFIX = "model.diffusion_model."

EMNIST32 = dict(
    image_size=4,
    in_channels=3,
    out_channels=3,
    model_channels=64,
    attention_resolutions=[1, 2],
    num_res_blocks=1,
    channel_mult=[1, 2],
    num_heads=2,
    use_spatial_transformer=True,
    context_dim=5,
    use_scale_shift_norm=True,
    resblock_updown=True,
)
CELEBA32 = dict(
    image_size=16,
    in_channels=3,
    out_channels=3,
    model_channels=192,
    attention_resolutions=[4, 2, 1],
    num_res_blocks=2,
    channel_mult=[1, 2, 4],
    num_head_channels=32,
    use_scale_shift_norm=True,
    resblock_updown=True,
)
CELEBA64 = {**CELEBA32, "image_size": 32, "model_channels": 128, "num_heads": 8, "num_head_channels": -1}
CIFAR32 = dict(
    image_size=16,
    in_channels=3,
    out_channels=3,
    model_channels=128,
    attention_resolutions=[1, 2, 4],
    num_res_blocks=2,
    channel_mult=[1, 2, 2, 4],
    num_heads=8,
    use_spatial_transformer=True,
    context_dim=512,
)
CIN256 = dict(
    image_size=64,
    in_channels=3,
    out_channels=3,
    model_channels=192,
    attention_resolutions=[8, 4, 2],
    num_res_blocks=2,
    channel_mult=[1, 2, 3, 5],
    num_heads=1,
    use_spatial_transformer=True,
    context_dim=512,
)
TXT2IMG = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    attention_resolutions=[4, 2, 1],
    num_res_blocks=2,
    channel_mult=[1, 2, 4, 4],
    num_heads=8,
    use_spatial_transformer=True,
    context_dim=1280,
    legacy=False,
    use_checkpoint=True,
)

CASES = {
    "dpldm_emnist32-conditional": (EMNIST32, 4_606_467),
    "dpldm_emnist32-dp-eps10": ({**EMNIST32, "num_heads": 4}, 4_606_467),
    "dpldm_imagenet32-unconditional": (CELEBA32, 162_314_115),
    "dpldm_celeba32-dp-eps1": (CELEBA32, 162_314_115),
    "dpldm_imagenet64-unconditional": (CELEBA64, 72_172_803),
    "dpldm_celeba64-dp-eps1": (CELEBA64, 72_172_803),
    "dpldm_imagenet32-conditional": ({**CIFAR32, "num_heads": -1, "num_head_channels": 8}, 90_290_563),
    "dpldm_cifar32-dp-eps10": (CIFAR32, 90_290_563),
    "dpldm_cin256-v2": (CIN256, 400_920_579),
    "dpldm_celebahq-dp-eps1": (CIN256, 400_920_579),
    "dpldm_celebahq-txt2img-dp-eps10": (TXT2IMG, 872_300_484),
}


@pytest.mark.parametrize("name", CASES)
def test_unet_tensors(name):
    params, count = CASES[name]
    with torch.device("meta"):
        model = UNetModel(**params)
    state = model.state_dict()
    state_dicts.assert_same_keys(state, name, PREFIX)
    assert list(state) == list(state_dicts.listing(name, PREFIX)), "optimizer states of checkpoints go by this order"
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_comparison_notices_a_missing_a_new_and_a_reshaped_tensor():
    with torch.device("meta"):
        state = dict(UNetModel(**EMNIST32).state_dict())
        state["out.2.bias"] = torch.empty(4)
        state["extra"] = torch.empty(1)
        del state["out.2.weight"]
    with pytest.raises(AssertionError) as caught:
        state_dicts.assert_same_keys(state, "dpldm_emnist32-conditional", PREFIX)
    for word in ("'missing': (1", "'unexpected': (1", "'different': (1"):
        assert word in str(caught.value)
