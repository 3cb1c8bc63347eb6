"""Tiny first stages and what it takes to train them for a few steps."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader


def tiny_config(**changes) -> dict:
    config = {
        "double_z": True,
        "z_channels": 3,
        "resolution": 16,
        "in_channels": 1,
        "out_ch": 1,
        "ch": 16,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [8],
        "dropout": 0.0,
    }
    return config | changes


def fit(model: pl.LightningModule, images: int = 4, ckpt_path: str | None = None, **trainer_params) -> pl.Trainer:
    """Train for one epoch on random grey images of 16x16, two a batch."""
    generator = torch.Generator().manual_seed(1)
    records = [{"image": 2 * torch.rand(16, 16, 1, generator=generator) - 1} for _ in range(images)]
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **({"max_epochs": 1} | trainer_params),
    )
    trainer.fit(model, DataLoader(records, batch_size=2), DataLoader(records[:2], batch_size=2), ckpt_path=ckpt_path)
    return trainer


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
