"""What the private-step benchmark trains: networks of the published sizes, their trained tensors, and made-up rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.latent_denoiser import LatentDenoiser


@dataclass(frozen=True)
class Size:
    """One network: latents of ``channels`` x ``side`` x ``side``, a class embedder, and where fine-tuning starts."""

    side: int
    classes: int
    context: int
    unet: Mapping[str, Any]
    first_block: int = -1
    channels: int = 3


SPATIAL = {"num_res_blocks": 1, "use_spatial_transformer": True, "transformer_depth": 1, "in_channels": 3}

SIZES = {
    # emnist32-conditional, fine-tuned on MNIST
    "mnist": Size(
        side=4,
        classes=26,
        context=5,
        unet={
            "model_channels": 64,
            "channel_mult": [1, 2],
            "attention_resolutions": [1, 2],
            "num_heads": 2,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
        },
    ),
    # imagenet32-conditional, fine-tuned on CIFAR-10 from the 9th attention block on
    "cifar": Size(
        side=16,
        classes=1001,
        context=512,
        first_block=9,
        unet={
            "num_res_blocks": 2,
            "model_channels": 128,
            "channel_mult": [1, 2, 2, 4],
            "attention_resolutions": [1, 2, 4],
            "num_head_channels": 8,
        },
    ),
}


SELECTIONS: dict[str, dict[str, Any]] = {
    "attention": {"train_condition_only": True},
    "all": {"cond_stage_trainable": True},
    "lora": {
        "train_condition_only": True,  # the class embedder
        "use_model_lora": True,
        "model_lora_r": 4,
        "model_lora_target": ["to_q", "to_k", "to_v", "to_out.0"],
    },
}


def build(size: Size, device: torch.device, selection: str = "attention") -> LatentDenoiser:
    """The model with the parameters chosen that private fine-tuning trains, and the class embedder with them.

    ``attention``: the spatial transformers. ``lora``: adapters of rank 4 on all projections of their attention layers.
    ``all``: the whole network.
    Its weights are moved away from the zeros that residual branches start with: behind those all gradients vanish.
    """
    torch.manual_seed(0)
    unet = {
        **SPATIAL,
        "image_size": size.side,
        "out_channels": size.channels,
        "in_channels": size.channels,
        "context_dim": size.context,
        **size.unet,
    }
    model = LatentDenoiser(
        first_stage_config={"target": "ldm.models.autoencoder.IdentityFirstStage"},
        cond_stage_config={
            "target": "ldm.modules.encoders.modules.ClassEmbedder",
            "params": {"embed_dim": size.context, "n_classes": size.classes, "key": "class_label"},
        },
        cond_stage_key="class_label",
        conditioning_key="crossattn",
        ablation_blocks=size.first_block if selection == "attention" else -1,
        **SELECTIONS[selection],
        dp_config={"enabled": True},
        unet_config={"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        image_size=size.side,
        channels=size.channels,
        use_ema=False,
        monitor=None,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.select_trainable()
    return model.to(device).train()


def make_rows(size: Size, records: int, copies: int, device: torch.device) -> dict[str, Tensor]:
    """What ``LatentDenoiser.expand_batch`` would give for a batch whose latents are cached: record-major rows."""
    generator = torch.Generator().manual_seed(1)
    shape = (size.channels, size.side, size.side)
    latents = torch.randn(records, *shape, generator=generator).repeat_interleave(copies, dim=0)
    labels = torch.randint(0, size.classes, (records,), generator=generator).repeat_interleave(copies, dim=0)
    rows = {
        "z": latents,
        "t": torch.randint(0, 1000, (len(latents),), generator=generator),
        "noise": torch.randn(latents.shape, generator=generator),
        "cond:class_label": labels,
    }
    return {key: value.to(device) for key, value in rows.items()}
