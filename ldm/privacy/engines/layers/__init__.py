"""Layer rules: per-record gradients of each kind of layer. A table passed to the clipper extends them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from ldm.privacy.engines.layers.contributions import Contribution, EmbeddingGradient, Materialized, OuterProducts
from ldm.privacy.engines.layers.conv import ConvRule
from ldm.privacy.engines.layers.embedding import EmbeddingRule
from ldm.privacy.engines.layers.linear import LinearRule
from ldm.privacy.engines.layers.norm import GroupNormRule, LayerNormRule
from ldm.privacy.engines.layers.rule import LayerRule, rule_for
from ldm.privacy.engines.layers.squares import SquaredNorms

DEFAULT_RULES: Mapping[type[nn.Module], LayerRule] = MappingProxyType(
    {
        nn.Linear: LinearRule(),
        nn.Conv1d: ConvRule(),
        nn.Conv2d: ConvRule(),
        nn.GroupNorm: GroupNormRule(),
        nn.LayerNorm: LayerNormRule(),
        nn.Embedding: EmbeddingRule(),
    }
)

__all__ = [
    "DEFAULT_RULES",
    "Contribution",
    "EmbeddingGradient",
    "LayerRule",
    "Materialized",
    "OuterProducts",
    "SquaredNorms",
    "rule_for",
]
