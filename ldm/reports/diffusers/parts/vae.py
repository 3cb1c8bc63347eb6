"""Autoencoders of the diffusers library for widths that 32 does not divide: groups of the norms by width."""

import functools

from diffusers import AutoencoderKL, VQModel
from torch import nn


def _set_groups(network):
    """32 groups where 32 divides the width, else the largest number up to a quarter of the width that divides it."""
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            width = layer.num_channels
            fitting = [groups for groups in range(1, max(1, width // 4) + 1) if width % groups == 0]
            layer.num_groups = 32 if width % 32 == 0 else max(fitting)


class GroupedAutoencoderKL(AutoencoderKL):
    """With a normal posterior."""

    @functools.wraps(AutoencoderKL.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _set_groups(self)


class GroupedVQModel(VQModel):
    """With a codebook."""

    @functools.wraps(VQModel.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _set_groups(self)
