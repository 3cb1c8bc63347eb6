"""The transformer beneath the text encoders: learned positions, pre-norm layers, a final norm and a token head.

Names and state-dict keys follow the latent-diffusion lineage, so that its text encoders load. Every weight is used only
inside the forward of the plain ``nn`` layer that owns it, and the first axis of every layer's input is the record axis.
Per-record gradient hooks need both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError

EMBEDDING_STD = 0.02  # of initial token and position tables, as in BERT (Devlin et al. 2019)


class AbsolutePositionalEmbedding(nn.Module):
    """A learned vector per position: tokens (B, N) -> (B, N, dim), the same N vectors in every row.

    The lookup is repeated for each row, because a single lookup for the batch has no record axis and gives no
    per-record gradient.
    """

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, dim)
        nn.init.normal_(self.emb.weight, std=EMBEDDING_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.emb(positions.expand(tokens.shape[0], -1))


class Attention(nn.Module):
    """Self-attention (B, N, dim) -> (B, N, dim) in ``heads`` heads of ``dim_head``, independent of ``dim``.

    Every position attends to all positions including padding, because the lineage's encoders were trained without a
    mask. Source: Vaswani et al. 2017, section 3.2.
    """

    def __init__(self, dim: int, dim_head: int = 64, heads: int = 8) -> None:
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in self._projections)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    @property
    def _projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.to_q, self.to_k, self.to_v


class FeedForward(nn.Module):
    """Two-layer perceptron over the last axis with an exact GELU; the hidden width is ``mult`` times ``dim``."""

    def __init__(self, dim: int, mult: int = 4) -> None:
        super().__init__()
        widen = nn.Sequential(nn.Linear(dim, mult * dim), nn.GELU())
        # the Identity takes the index of the lineage's dropout (rate 0), for the state-dict keys
        self.net = nn.Sequential(widen, nn.Identity(), nn.Linear(mult * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Encoder(nn.Module):
    """``depth`` pairs of attention and feed-forward, each behind a LayerNorm and added to its input.

    (B, N, dim) -> (B, N, dim). ``layers`` alternates [norm, attention] and [norm, feed-forward].
    """

    def __init__(self, dim: int, depth: int, heads: int = 8) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList()
        for _ in range(depth):
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), Attention(dim, heads=heads)]))
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), FeedForward(dim)]))

    def forward(self, x: Tensor) -> Tensor:
        for pair in self.layers:
            norm, block = pair.children()
            x = x + block(norm(x))
        return x


class TransformerWrapper(nn.Module):
    """Tokens (B, N) int64 in [0, num_tokens), N <= max_seq_len -> embeddings (B, N, dim) or logits (B, N, num_tokens).

    Raises UserError for a sequence that is too long, and on the CPU for a token outside the vocabulary.
    """

    def __init__(self, num_tokens: int, max_seq_len: int, attn_layers: Encoder, emb_dropout: float = 0.0) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.num_tokens = num_tokens
        self.token_emb = nn.Embedding(num_tokens, attn_layers.dim)
        nn.init.normal_(self.token_emb.weight, std=EMBEDDING_STD)
        self.pos_emb = AbsolutePositionalEmbedding(attn_layers.dim, max_seq_len)
        self.emb_dropout = nn.Dropout(emb_dropout)
        self.attn_layers = attn_layers
        self.norm = nn.LayerNorm(attn_layers.dim)
        self.to_logits = nn.Linear(attn_layers.dim, num_tokens)

    def forward(self, tokens: Tensor, return_embeddings: bool = False) -> Tensor:
        if tokens.shape[1] > self.max_seq_len:
            raise UserError(f"{tokens.shape[1]} tokens in a row; this text encoder takes {self.max_seq_len}")
        try:
            embedded = self.token_emb(tokens)
        except IndexError:  # raised by the lookup on the CPU
            raise UserError(
                f"token {int(tokens.max())} is outside the text encoder's vocabulary of {self.num_tokens}; "
                "set vocab_size to the number of lines of the vocabulary file"
            ) from None
        x = self.norm(self.attn_layers(self.emb_dropout(embedded + self.pos_emb(tokens))))
        return x if return_embeddings else self.to_logits(x)
