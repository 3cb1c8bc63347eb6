"""Denoising networks of the diffusers library whose down- and up-sampling layers are residual blocks."""

import functools

from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


class _Resampling(ResnetBlock2D):
    """A residual block that resamples; the network leaves the time embedding of the current call in ``embedding``."""

    embedding = None

    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states, self.embedding)


def _replace_resampling(network):
    """Put residual blocks in the places of the down- and up-sampling convolutions."""
    config, made = network.config, []
    for kind, sides in (("downsamplers", network.down_blocks), ("upsamplers", network.up_blocks)):
        for side in sides:
            if getattr(side, kind) is None:
                continue
            block = _Resampling(
                in_channels=side.resnets[-1].out_channels,
                temb_channels=network.time_embedding.linear_2.out_features,
                groups=config.norm_num_groups,
                eps=config.norm_eps,
                dropout=config.dropout,
                time_embedding_norm=config.resnet_time_scale_shift,
                down=kind == "downsamplers",
                up=kind == "upsamplers",
            )
            setattr(side, kind, nn.ModuleList([block]))
            made.append(block)

    def keep(module, inputs, output):
        for block in made:
            block.embedding = output

    network.time_embedding.register_forward_hook(keep)


class ResamplingUNet2DConditionModel(UNet2DConditionModel):
    """With a condition, here one-hot classes."""

    @functools.wraps(UNet2DConditionModel.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _replace_resampling(self)


class ResamplingUNet2DModel(UNet2DModel):
    """Without a condition."""

    @functools.wraps(UNet2DModel.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _replace_resampling(self)
