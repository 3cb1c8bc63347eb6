"""Attention over token sequences: cross-attention, gated feed-forward and the spatial transformer block.

Names, constructor parameters and state-dict keys follow the latent-diffusion lineage (Rombach et al., 2022, arXiv
2112.10752, appendix E.2.1), so that its checkpoints load. Per-record gradient hooks require that every weight is used
only inside the forward of the plain ``nn`` layer that owns it, and that no layer output is changed in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import checkpoint as run_checkpointed
from ldm.modules.diffusionmodules.util import zero_module

SPATIAL_NORM_EPS = 1e-6  # the residual blocks of the UNet use the torch default 1e-5 instead


class GEGLU(nn.Module):
    """Linear unit gated by an exact (erf) GELU, (..., dim_in) -> (..., dim_out) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two-layer perceptron over the last axis: (..., dim) -> (..., dim_out or dim), hidden width ``mult * dim``."""

    def __init__(
        self, dim: int, dim_out: int | None = None, mult: int = 4, glu: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = int(dim * mult)
        project_in = GEGLU(dim, inner) if glu else nn.Sequential(nn.Linear(dim, inner), nn.GELU())
        self.net = nn.Sequential(project_in, nn.Dropout(dropout), nn.Linear(inner, dim if dim_out is None else dim_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class LinearAttention(nn.Module):
    """Attention with a softmax over key positions only, linear in H*W (Shen et al. 2018): (B,dim,H,W) -> same shape."""

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(dim, heads * dim_head * 3, 1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.to_qkv(x).reshape(b, 3, self.heads, -1, h * w).unbind(dim=1)
        memory = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=-1), v)
        out = torch.einsum("bhde,bhdn->bhen", memory, q)
        return self.to_out(out.reshape(b, -1, h, w).contiguous())


class CrossAttention(nn.Module):
    """Multi-head attention of queries on a context (Vaswani et al. 2017, eq. 1).

    Queries (B, N, query_dim), context (B, M, context_dim) or None for self-attention, result (B, N, query_dim).
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = dim_head * heads
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``mask``: boolean, (B, M) or any shape that flattens to it; True marks context positions that may be seen."""
        context = x if context is None else context
        q = self._heads_first(self.to_q(x))
        k = self._heads_first(self.to_k(context))
        v = self._heads_first(self.to_v(context))
        bias = None
        if mask is not None:
            # The most negative number instead of -inf, so a fully masked row averages its context instead of giving
            # NaN.
            seen = mask.flatten(1)[:, None, None, :].bool()
            bias = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -torch.finfo(q.dtype).max)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def _heads_first(self, x: Tensor) -> Tensor:
        """(B, N, heads * d) -> (B, heads, N, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention on the context and a feed-forward, each behind a LayerNorm and added to its input.

    x (B, N, dim), context (B, M, context_dim) or None -> (B, N, dim).
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        dropout: float = 0.0,
        context_dim: int | None = None,
        gated_ff: bool = True,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, heads=n_heads, dim_head=d_head, dropout=dropout)
        self.ff = FeedForward(dim, dropout=dropout, glu=gated_ff)
        self.attn2 = CrossAttention(dim, context_dim, heads=n_heads, dim_head=d_head, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.checkpoint = checkpoint

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return run_checkpointed(self._forward, (x, context), self.checkpoint)

    def _forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, inside a residual branch that starts at zero.

    x (B, in_channels, H, W), context (B, M, context_dim) or None (the second attention is then self-attention) -> same
    shape as x. ``in_channels`` must be a multiple of 32 (group norm).
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        inner = n_heads * d_head
        self.norm = nn.GroupNorm(32, in_channels, eps=SPATIAL_NORM_EPS)
        self.proj_in = nn.Conv2d(in_channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner, n_heads, d_head, dropout=dropout, context_dim=context_dim, checkpoint=use_checkpoint
            )
            for _ in range(depth)
        )
        self.proj_out = zero_module(nn.Conv2d(inner, in_channels, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        # Per-sample gradient code that unfolds activations relies on contiguous NCHW input of the convolutions.
        h = self.proj_in(self.norm(x).contiguous())
        h = h.flatten(2).transpose(1, 2).contiguous()
        for block in self.transformer_blocks:
            h = block(h, context)
        h = h.transpose(1, 2).unflatten(2, (height, width)).contiguous()
        return self.proj_out(h) + x
