"""The denoising UNet (Dhariwal & Nichol 2021, arXiv 2105.05233; with spatial transformers: Rombach et al. 2022).

Block names are re-exported here because YAML files and code of the lineage look them up under this module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.modules.attention import CrossAttention, SpatialTransformer
from ldm.modules.diffusionmodules.unet_attention import AttentionBlock, QKVAttention, QKVAttentionLegacy
from ldm.modules.diffusionmodules.unet_blocks import (
    Downsample,
    ResBlock,
    TimestepBlock,
    TimestepEmbedSequential,
    Upsample,
)
from ldm.modules.diffusionmodules.util import conv_nd, linear, normalization, timestep_embedding, zero_module
from ldm.modules.lora import LoRAConfig, insert_adapters

__all__ = [
    "AttentionBlock",
    "Downsample",
    "QKVAttention",
    "QKVAttentionLegacy",
    "ResBlock",
    "TimestepBlock",
    "TimestepEmbedSequential",
    "UNetModel",
    "Upsample",
]


class UNetModel(nn.Module):
    """UNet with attention and time embedding: x (B, in_channels, H, W) -> (B, out_channels, H, W).

    ``attention_resolutions`` are down-sampling factors (powers of two), not pixel sizes; H and W must be multiples of
    2 ** (levels - 1). Give ``num_heads`` or ``num_head_channels``. With ``legacy`` (the lineage default) a spatial
    transformer only takes its head *count* from ``num_head_channels``. ``use_spatial_transformer`` needs
    ``context_dim``. ``num_classes`` adds a label embedding to the time embedding, ``n_embed`` makes the network return
    logits over codebook entries (B, n_embed, H, W). ``lora_rank`` adds DP-LDM's adapters to every attention projection:
    alpha 1, so a scaling of 1 / rank, and loralib's start values. Raises UserError for contradicting parameters.

    Args:
        image_size: side of the input in pixels or latent cells; stored, the network takes other sizes too.
        in_channels: channels of x, of a concatenated condition too.
        model_channels: channels at full resolution; ch_mult multiplies them.
        out_channels: channels of the prediction.
        num_res_blocks: residual blocks a level, one number or one a level.
        attention_resolutions: down-sampling factors of the levels with attention.
        dropout: dropout rate inside residual blocks, in [0, 1).
        channel_mult: multiple of model_channels at each level; its length is the number of levels.
        conv_resample: convolutions in down- and up-sampling, in place of pooling and repeating alone.
        dims: 1, 2 or 3: signals, images, volumes.
        num_classes: number of labels added to the time embedding; None for none.
        use_checkpoint: compute activations again in the backward pass to save memory.
        num_heads: attention heads; -1 leaves it to num_head_channels.
        num_head_channels: channels a head; -1 leaves it to num_heads.
        num_heads_upsample: attention heads in the output half; -1 means num_heads.
        use_scale_shift_norm: the time embedding scales and shifts the normalised activations, in place of being added.
        resblock_updown: down- and up-sample by residual blocks.
        use_new_attention_order: split query, key and value before the heads.
        use_spatial_transformer: spatial transformers with cross-attention, in place of attention blocks.
        transformer_depth: transformer layers in a spatial transformer, >= 1.
        context_dim: width of the condition's tokens.
        n_embed: number of codebook entries to predict; None to predict noise or an image.
        legacy: head sizes of spatial transformers as in the lineage's checkpoints.
        lora_rank: rank of DP-LDM's adapters; None for none.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | None = None,
        n_embed: int | None = None,
        legacy: bool = True,
        lora_rank: int | None = None,
    ) -> None:
        super().__init__()
        _check(use_spatial_transformer, context_dim, num_heads, num_head_channels, channel_mult, num_res_blocks)
        self.image_size = image_size
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.out_channels = out_channels
        self.num_res_blocks = num_res_blocks
        self.attention_resolutions = tuple(attention_resolutions)
        self.dropout = dropout
        self.channel_mult = tuple(channel_mult)
        self.conv_resample = conv_resample
        self.dims = dims
        self.num_classes = num_classes
        self.use_checkpoint = use_checkpoint
        self.num_heads = num_heads
        self.num_head_channels = num_head_channels
        self.num_heads_upsample = num_heads if num_heads_upsample == -1 else num_heads_upsample
        self.use_scale_shift_norm = use_scale_shift_norm
        self.resblock_updown = resblock_updown
        self.use_new_attention_order = use_new_attention_order
        self.use_spatial_transformer = use_spatial_transformer
        self.transformer_depth = transformer_depth
        self.context_dim = context_dim
        self.legacy = legacy
        self.predict_codebook_ids = n_embed is not None
        self._build(out_channels, n_embed)
        if lora_rank is not None:
            config = LoRAConfig(rank=lora_rank, alpha=1.0, init="kaiming")
            insert_adapters(self, config, attention_projections(self))

    def _build(self, out_channels: int, n_embed: int | None) -> None:
        """Create all layers; seeded initial values depend on their order."""
        self.time_embed_dim = self.model_channels * 4
        self.time_embed = nn.Sequential(
            linear(self.model_channels, self.time_embed_dim),
            nn.SiLU(),
            linear(self.time_embed_dim, self.time_embed_dim),
        )
        if self.num_classes is not None:
            self.label_emb = nn.Embedding(self.num_classes, self.time_embed_dim)
        skip_widths = self._build_input_blocks()
        width = skip_widths[-1]
        self.middle_block = TimestepEmbedSequential(
            self._res_block(width, width),
            self._attention(width, self.num_heads),
            self._res_block(width, width),
        )
        width = self._build_output_blocks(width, skip_widths)
        self.out = nn.Sequential(
            normalization(width), nn.SiLU(), zero_module(conv_nd(self.dims, width, out_channels, 3, padding=1))
        )
        if n_embed is not None:
            self.id_predictor = nn.Sequential(normalization(width), conv_nd(self.dims, width, n_embed, 1))

    def _build_input_blocks(self) -> list[int]:
        """Create ``input_blocks``; returns the output width of each block, in order."""
        width, factor = self.model_channels, 1
        stem = conv_nd(self.dims, self.in_channels, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(stem)])
        widths = [width]
        for level, mult in enumerate(self.channel_mult):
            for _ in range(self.num_res_blocks):
                layers: list[nn.Module] = [self._res_block(width, mult * self.model_channels)]
                width = mult * self.model_channels
                if factor in self.attention_resolutions:
                    layers.append(self._attention(width, self.num_heads))
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                widths.append(width)
            if level != len(self.channel_mult) - 1:
                self.input_blocks.append(TimestepEmbedSequential(self._resample(width, down=True)))
                widths.append(width)
                factor *= 2
        return widths

    def _build_output_blocks(self, width: int, skip_widths: list[int]) -> int:
        """Create ``output_blocks``, which consume ``skip_widths`` from the end; returns the last block's width."""
        self.output_blocks = nn.ModuleList()
        remaining = list(skip_widths)
        factor = 2 ** (len(self.channel_mult) - 1)
        for level in reversed(range(len(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                out_width = self.channel_mult[level] * self.model_channels
                layers: list[nn.Module] = [self._res_block(width + remaining.pop(), out_width)]
                width = out_width
                if factor in self.attention_resolutions:
                    layers.append(self._attention(width, self.num_heads_upsample))
                if level and i == self.num_res_blocks:
                    layers.append(self._resample(width, down=False))
                    factor //= 2
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        return width

    def _res_block(self, width: int, out_width: int, up: bool = False, down: bool = False) -> ResBlock:
        return ResBlock(
            width,
            self.time_embed_dim,
            self.dropout,
            out_channels=out_width,
            dims=self.dims,
            use_checkpoint=self.use_checkpoint,
            use_scale_shift_norm=self.use_scale_shift_norm,
            up=up,
            down=down,
        )

    def _resample(self, width: int, down: bool) -> nn.Module:
        if self.resblock_updown:
            return self._res_block(width, width, up=not down, down=down)
        return (Downsample if down else Upsample)(width, self.conv_resample, dims=self.dims, out_channels=width)

    def _attention(self, width: int, block_heads: int) -> nn.Module:
        """One attention layer; ``block_heads`` is the head count of an AttentionBlock when no head width is given."""
        heads = self.num_heads if self.num_head_channels == -1 else width // self.num_head_channels
        if self.use_spatial_transformer:
            if heads < 1 or width < heads:
                raise UserError(
                    f"an attention layer of width {width} cannot be split as num_heads {self.num_heads} / "
                    f"num_head_channels {self.num_head_channels} ask for; lower them"
                )
            take_given_width = self.num_head_channels != -1 and not self.legacy
            head_width = self.num_head_channels if take_given_width else width // heads
            return SpatialTransformer(
                width,
                heads,
                head_width,
                depth=self.transformer_depth,
                context_dim=self.context_dim,
                use_checkpoint=self.use_checkpoint,
            )
        head_width = self.num_head_channels
        if head_width == -1 and not self.legacy:
            head_width = width // heads
        return AttentionBlock(
            width,
            num_heads=block_heads,
            num_head_channels=head_width,
            use_checkpoint=self.use_checkpoint,
            use_new_attention_order=self.use_new_attention_order,
        )

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Predict from x (B,C,H,W), timesteps (B,), context (B,M,context_dim) and labels y (B,), both optional.

        Raises UserError when labels are given to a network without ``num_classes`` or are missing for one with it.
        """
        if (y is not None) != (self.num_classes is not None):
            raise UserError(
                "class labels y must be given exactly when the UNet has num_classes; "
                f"num_classes is {self.num_classes}, y is {'missing' if y is None else 'given'}"
            )
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        skips = []
        h = x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.id_predictor(h) if self.predict_codebook_ids else self.out(h)


def attention_projections(network: nn.Module) -> list[str]:
    """Dotted names of the projections of all attention layers: qkv and proj_out, or to_q, to_k, to_v and to_out.0."""
    parts = {AttentionBlock: ("qkv", "proj_out"), CrossAttention: ("to_q", "to_k", "to_v", "to_out.0")}
    return [f"{name}.{part}" for name, module in network.named_modules() for part in parts.get(type(module), ())]


def _check(
    use_spatial_transformer: bool,
    context_dim: int | None,
    num_heads: int,
    num_head_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
) -> None:
    if use_spatial_transformer and context_dim is None:
        raise UserError("use_spatial_transformer needs context_dim, the width of the conditioning vectors")
    if context_dim is not None and not use_spatial_transformer:
        raise UserError("context_dim is set but use_spatial_transformer is not; set it to true or drop context_dim")
    if context_dim is not None and not isinstance(context_dim, int):
        raise UserError(f"context_dim is {context_dim!r}; give one whole number")
    if num_heads == -1 and num_head_channels == -1:
        raise UserError("the UNet needs num_heads or num_head_channels; e.g. num_head_channels: 32")
    if not isinstance(num_res_blocks, int) or num_res_blocks < 1 or len(channel_mult) < 1:
        raise UserError("the UNet needs num_res_blocks >= 1 (one number) and at least one entry in channel_mult")
