"""Convolutional encoder and decoder of the first stage (autoencoder).

Architecture of Esser et al. 2021 (VQGAN) as used by Rombach et al. 2022; names and state-dict keys are those of that
lineage.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError

ATTENTION_TYPES = ("vanilla", "linear", "none")


def nonlinearity(x: Tensor) -> Tensor:
    """Swish, x * sigmoid(x)."""
    return F.silu(x)


def norm_groups(in_channels: int, num_groups: int = 32) -> int:
    """Number of normalisation groups for a width.

    `num_groups` for every width that it divides (all published checkpoints). Other widths occur only in this project's
    small models; they get the largest number of groups up to a quarter of the width that divides the width.
    """
    if in_channels % num_groups == 0:
        return num_groups
    groups = max(1, in_channels // 4)
    while in_channels % groups:
        groups -= 1
    return groups


def Normalize(in_channels: int, num_groups: int = 32) -> nn.GroupNorm:
    """Group norm with eps 1e-6 (the UNet's norm uses 1e-5)."""
    return nn.GroupNorm(norm_groups(in_channels, num_groups), in_channels, eps=1e-6, affine=True)


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=padding)


def _conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=1)


class Upsample(nn.Module):
    """Doubles height and width by repetition, then optionally convolves. (B,C,H,W) -> (B,C,2H,2W)."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = _conv3x3(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x) if self.with_conv else x


class Downsample(nn.Module):
    """Halves height and width with a strided convolution or a mean. (B,C,H,W) -> (B,C,H//2,W//2)."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = _conv3x3(in_channels, in_channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        if self.with_conv:
            # Pad the right and bottom edges only, because the published weights were trained with this padding.
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return F.avg_pool2d(x, kernel_size=2, stride=2)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions with a skip connection. (B,C_in,H,W) -> (B,C_out,H,W).

    `temb_channels` > 0 adds a projection of a time embedding (B, temb_channels) between the two; autoencoders use 0.
    `conv_shortcut` makes a skip connection that changes width 3x3 instead of 1x1.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        conv_shortcut: bool = False,
        dropout: float = 0.0,
        temb_channels: int = 512,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.use_conv_shortcut = conv_shortcut

        self.norm1 = Normalize(in_channels)
        self.conv1 = _conv3x3(in_channels, out_channels)
        if temb_channels > 0:
            self.temb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = Normalize(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv3x3(out_channels, out_channels)
        if in_channels != out_channels:
            if conv_shortcut:
                self.conv_shortcut = _conv3x3(in_channels, out_channels)
            else:
                self.nin_shortcut = _conv1x1(in_channels, out_channels)

    def _skip(self, x: Tensor) -> Tensor:
        if self.in_channels == self.out_channels:
            return x
        return self.conv_shortcut(x) if self.use_conv_shortcut else self.nin_shortcut(x)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(nonlinearity(self.norm1(x)))
        if temb is not None:
            h = h + self.temb_proj(nonlinearity(temb))[:, :, None, None]
        h = self.conv2(self.dropout(nonlinearity(self.norm2(h))))
        return self._skip(x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of an image, with a skip connection. Keeps (B,C,H,W)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.norm = Normalize(in_channels)
        self.q = _conv1x1(in_channels, in_channels)
        self.k = _conv1x1(in_channels, in_channels)
        self.v = _conv1x1(in_channels, in_channels)
        self.proj_out = _conv1x1(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        # (B,C,H,W) -> (B, one head, H*W positions, C)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class LinAttnBlock(nn.Module):
    """Single-head linear attention (softmax over the keys only), without norm or skip connection. Keeps (B,C,H,W)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.heads = 1
        self.to_qkv = nn.Conv2d(in_channels, 3 * in_channels, kernel_size=1, bias=False)
        self.to_out = _conv1x1(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).flatten(2).chunk(3, dim=1)  # each (B,C,H*W)
        context = k.softmax(dim=-1) @ v.transpose(1, 2)  # (B, C of keys, C of values)
        return self.to_out((context.transpose(1, 2) @ q).reshape(x.shape))


def make_attn(in_channels: int, attn_type: str = "vanilla") -> nn.Module:
    """The attention block of a width: "vanilla", "linear" or "none" (identity). Raises UserError for another name."""
    if attn_type == "vanilla":
        return AttnBlock(in_channels)
    if attn_type == "linear":
        return LinAttnBlock(in_channels)
    if attn_type == "none":
        return nn.Identity()
    raise UserError(f"attn_type: {attn_type!r} is unknown; use one of {', '.join(ATTENTION_TYPES)}")


class _Middle(nn.Module):
    """The lowest resolution: attention between two residual blocks. Keeps (B,C,H,W)."""

    def __init__(self, channels: int, dropout: float, attn_type: str) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(in_channels=channels, out_channels=channels, dropout=dropout, temb_channels=0)
        self.attn_1 = make_attn(channels, attn_type)
        self.block_2 = ResnetBlock(in_channels=channels, out_channels=channels, dropout=dropout, temb_channels=0)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class _Level(nn.Module):
    """One resolution: residual blocks through `widths`, each followed by an attention block when `attention`.

    The encoder or decoder adds the change of size that follows; `forward` does not apply it.
    """

    downsample: Downsample
    upsample: Upsample

    def __init__(self, widths: Sequence[int], attention: bool, dropout: float, attn_type: str) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        self.attn = nn.ModuleList()
        for width_in, width_out in pairwise(widths):
            block = ResnetBlock(in_channels=width_in, out_channels=width_out, dropout=dropout, temb_channels=0)
            self.block.append(block)
            if attention:
                self.attn.append(make_attn(width_out, attn_type))

    def forward(self, h: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            h = block(h)
            if len(self.attn) > 0:
                h = self.attn[index](h)
        return h


class Encoder(nn.Module):
    """Image (B, in_channels, H, W) in [-1,1] -> features (B, C, H/f, W/f) with f = 2**(levels-1).

    C is 2*z_channels with `double_z` (mean and log-variance), else z_channels.

    Encoder and decoder accept the same parameters because they share one `ddconfig`; `out_ch`, `give_pre_end` and
    `tanh_out` only matter to the decoder. `attn_resolutions` are resolutions of feature maps when the input has the
    nominal `resolution`; other input sizes work and keep the layers.

    Args:
        ch: channels at full resolution.
        out_ch: channels of the decoded image.
        ch_mult: multiple of ch at each level; the image shrinks by 2 between levels.
        num_res_blocks: residual blocks a level.
        attn_resolutions: resolutions of feature maps that get attention; may be empty.
        dropout: dropout rate inside residual blocks, in [0, 1).
        resamp_with_conv: convolutions in down- and up-sampling, in place of pooling and repeating alone.
        in_channels: channels of the images, 1 or 3.
        resolution: nominal side of the images in pixels.
        z_channels: channels before quant_conv.
        double_z: mean and log-variance (AutoencoderKL: true) or a code (VQModel: false).
        give_pre_end: the decoder stops before its last convolution.
        tanh_out: the decoder's images go through tanh.
        use_linear_attn: linear attention; older spelling of attn_type linear.
        attn_type: vanilla, linear or none.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
    ) -> None:
        super().__init__()
        attn_type = "linear" if use_linear_attn else attn_type
        self.ch = ch
        self.num_resolutions = len(ch_mult)
        self.num_res_blocks = num_res_blocks
        self.resolution = resolution
        self.in_channels = in_channels

        self.conv_in = _conv3x3(in_channels, ch)
        self.down = nn.ModuleList()
        width, size = ch, resolution
        for index, factor in enumerate(ch_mult):
            level = _Level([width] + [ch * factor] * num_res_blocks, size in attn_resolutions, dropout, attn_type)
            width = ch * factor if num_res_blocks > 0 else width
            if index != len(ch_mult) - 1:
                level.downsample = Downsample(width, resamp_with_conv)
                size //= 2
            self.down.append(level)
        self.mid = _Middle(width, dropout, attn_type)
        self.norm_out = Normalize(width)
        self.conv_out = _conv3x3(width, 2 * z_channels if double_z else z_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for index, level in enumerate(self.down):
            assert isinstance(level, _Level)
            h = level(h)
            if index != self.num_resolutions - 1:
                h = level.downsample(h)
        h = self.mid(h)
        return self.conv_out(nonlinearity(self.norm_out(h)))


class Decoder(nn.Module):
    """Latent (B, z_channels, h, w) -> image (B, out_ch, h*f, w*f), f = 2**(levels-1). Mirrors `Encoder`.

    `up.0` is the highest resolution. `give_pre_end` returns the features before the last norm; `tanh_out` bounds the
    output. `in_channels` and `double_z` only matter to the encoder.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
    ) -> None:
        super().__init__()
        attn_type = "linear" if use_linear_attn else attn_type
        self.ch = ch
        self.num_resolutions = len(ch_mult)
        self.num_res_blocks = num_res_blocks
        self.resolution = resolution
        self.give_pre_end = give_pre_end
        self.tanh_out = tanh_out

        width = ch * ch_mult[-1]
        size = resolution // 2 ** (self.num_resolutions - 1)
        self.conv_in = _conv3x3(z_channels, width)
        self.mid = _Middle(width, dropout, attn_type)
        levels = []
        for index in reversed(range(self.num_resolutions)):
            widths = [width] + [ch * ch_mult[index]] * (num_res_blocks + 1)
            level = _Level(widths, size in attn_resolutions, dropout, attn_type)
            width = widths[-1]
            if index != 0:
                level.upsample = Upsample(width, resamp_with_conv)
                size *= 2
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = Normalize(width)
        self.conv_out = _conv3x3(width, out_ch)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for index in reversed(range(self.num_resolutions)):
            level = self.up[index]
            assert isinstance(level, _Level)
            h = level(h)
            if index != 0:
                h = level.upsample(h)
        if self.give_pre_end:
            return h
        h = self.conv_out(nonlinearity(self.norm_out(h)))
        return torch.tanh(h) if self.tanh_out else h
