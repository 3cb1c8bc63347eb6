"""Convolutional blocks of the denoising UNet: residual blocks, resampling, and the container that routes inputs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.util import (
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    normalization,
    zero_module,
)


class TimestepBlock(nn.Module):
    """A module whose forward takes the feature map and the time embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, H, W), emb (B, emb_channels) -> (B, C', H', W')."""
        raise NotImplementedError


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """A sequence that passes the time embedding and the context to the children that accept them."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class Upsample(nn.Module):
    """Doubles height and width (nearest neighbour), followed by a 3x3 convolution when ``use_conv``."""

    def __init__(
        self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None, padding: int = 1
    ) -> None:
        super().__init__()
        _only_images(dims)
        self.channels = channels
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        if use_conv:
            self.conv = conv_nd(dims, self.channels, self.out_channels, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x) if self.use_conv else x


class Downsample(nn.Module):
    """Halves height and width: a 3x3 convolution with stride 2 when ``use_conv``, the mean of 2x2 pixels otherwise."""

    def __init__(
        self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None, padding: int = 1
    ) -> None:
        super().__init__()
        _only_images(dims)
        self.channels = channels
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        if use_conv:
            self.op = conv_nd(dims, self.channels, self.out_channels, 3, stride=2, padding=padding)
        elif self.out_channels != channels:
            raise UserError("conv_resample: false cannot change the channel count; set conv_resample: true")
        else:
            self.op = avg_pool_nd(dims, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(TimestepBlock):
    """Two normalised 3x3 convolutions with the time embedding in between, added to the (projected) input.

    x (B, channels, H, W), emb (B, emb_channels) -> (B, out_channels, H', W'); ``up`` and ``down`` resample both paths
    by 2. ``use_scale_shift_norm`` lets the embedding scale and shift the second norm (Dhariwal & Nichol 2021, arXiv
    2105.05233, section 3) instead of being added. The branch starts at zero.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        _only_images(dims)
        if up and down:
            raise UserError("a residual block cannot resample up and down at once; set one of up, down")
        self.channels = channels
        self.emb_channels = emb_channels
        self.out_channels = out_channels or channels
        self.use_checkpoint = use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm
        self.updown = up or down

        self.in_layers = nn.Sequential(
            normalization(channels), nn.SiLU(), conv_nd(dims, channels, self.out_channels, 3, padding=1)
        )
        resample = Upsample if up else Downsample
        self.h_upd = resample(channels, False, dims) if self.updown else nn.Identity()
        self.x_upd = resample(channels, False, dims) if self.updown else nn.Identity()
        emb_width = self.out_channels * (2 if use_scale_shift_norm else 1)
        self.emb_layers = nn.Sequential(nn.SiLU(), linear(emb_channels, emb_width))
        self.out_layers = nn.Sequential(
            normalization(self.out_channels),
            nn.SiLU(),
            nn.Dropout(p=dropout),
            zero_module(conv_nd(dims, self.out_channels, self.out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module
        if self.out_channels == channels:
            self.skip_connection = nn.Identity()
        elif use_conv:
            self.skip_connection = conv_nd(dims, channels, self.out_channels, 3, padding=1)
        else:
            self.skip_connection = conv_nd(dims, channels, self.out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return checkpoint(self._forward, (x, emb), self.use_checkpoint)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm_in, act_in, conv_in = self.in_layers
        h = conv_in(self.h_upd(act_in(norm_in(x))))
        emb_out = self.emb_layers(emb).to(h.dtype)[..., None, None]
        norm_out, act_out, dropout, conv_out = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = emb_out.chunk(2, dim=1)
            h = norm_out(h) * (1 + scale) + shift
        else:
            h = norm_out(h + emb_out)
        h = conv_out(dropout(act_out(h)))
        return self.skip_connection(self.x_upd(x)) + h


def _only_images(dims: int) -> None:
    if dims != 2:
        raise UserError(f"dims is {dims}; this UNet works on images only, set dims: 2 or leave it out")
