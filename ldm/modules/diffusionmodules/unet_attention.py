"""Self-attention over the pixels of a feature map, with the two weight layouts that lineage checkpoints use."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.modules.diffusionmodules.util import checkpoint, conv_nd, normalization, zero_module


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of channel-major heads, (B, H, C, T) each -> (B, H * C, T)."""
    out = F.scaled_dot_product_attention(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3))
    return out.transpose(2, 3).flatten(1, 2)


class QKVAttentionLegacy(nn.Module):
    """Attention on (B, H * 3 * C, T) whose channels are split into heads first, then into q, k, v -> (B, H * C, T)."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(1, (self.n_heads, -1)).chunk(3, dim=2)
        return _attend(q, k, v)


class QKVAttention(nn.Module):
    """Attention on (B, 3 * H * C, T) whose channels are split into q, k, v first, then into heads -> (B, H * C, T)."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(1, (3, self.n_heads, -1)).unbind(dim=1)
        return _attend(q, k, v)


class AttentionBlock(nn.Module):
    """Self-attention over all positions in a residual branch that starts at zero: (B, channels, ...) -> same shape.

    ``num_head_channels`` other than -1 sets the head width and overrides ``num_heads``. ``use_new_attention_order``
    only selects the layout of the rows of the qkv weight. Raises UserError when the heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        split = num_heads if num_head_channels == -1 else num_head_channels
        if split < 1 or channels % split:
            name = "num_heads" if num_head_channels == -1 else "num_head_channels"
            raise UserError(f"{name} {split} does not divide the {channels} channels of an attention layer")
        self.channels = channels
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        self.use_checkpoint = use_checkpoint
        self.norm = normalization(channels)
        self.qkv = conv_nd(1, channels, channels * 3, 1)
        self.attention = (QKVAttention if use_new_attention_order else QKVAttentionLegacy)(self.num_heads)
        self.proj_out = zero_module(conv_nd(1, channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self._forward, (x,), self.use_checkpoint)

    def _forward(self, x: Tensor) -> Tensor:
        positions = x.flatten(2).contiguous()
        branch = self.proj_out(self.attention(self.qkv(self.norm(positions))))
        return (positions + branch).reshape(x.shape)
